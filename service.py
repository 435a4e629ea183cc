"""What every door calls: texts and options in, vectors and facts about them out. It knows neither Cog nor HTTP.

async with Service("small") as service:
    embedded = await service.embed(read_texts(texts=["one", "two"]), Options(task="clustering"))
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import numpy as np

import engine
import selfcheck
import settings
import weights
from batching.batcher import Batcher
from batching.errors import EngineFailed
from batching.health import Health
from batching.request import Cost
from engine.contract import Engine
from engine.threads import in_own_thread
from engine.tokenizer import TextRefused
from texts.options import Options, prompts_in_texts
from texts.prepare import Prepared, prepare
from texts.prompts import PromptRefused
from texts.request import Texts

logger = logging.getLogger(__name__)

MAX_CHUNKS = 8192
CANARY_TEXT = "Is the canary still singing?"

# Work on so few characters or numbers takes less time than handing it to another thread.
CHARACTERS_ON_LOOP = 2_000
NUMBERS_ON_LOOP = 8 * 768

# Without MAX_WAITING_TOKENS: seconds of work for a GPU, and on it room for the largest request there can be.
MAX_WAITING_BATCHES = 256
CACHE_MB = 64

Args = ParamSpec("Args")
Result = TypeVar("Result")


class TooLong(ValueError):
    """A text, or a title, that does not fit into the model's limit of tokens as asked."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one request, in the order of its texts, and what is known of them."""

    vectors: np.ndarray
    """[n, width] as the options have it, [width] for a single text without chunking."""
    owners: list[int]
    """The position of each vector's text."""
    token_counts: list[int]
    """Tokens that each vector is the mean over, prompt, `<bos>` and `<eos>` included."""
    truncated: list[int]
    """The vectors whose text was cut to the limit."""
    prompted: list[int]
    """The positions of the texts that began with one of the model's prompts and got no other."""
    chunks: list[list[int]] | None
    """With chunking, [text, start, end] of each vector: it is of the characters [start, end) of that text."""
    cost: Cost


class Service:
    """One checkpoint on one device, for any number of requests at once.

    `start` and `close` block; `async with` calls them in another thread. The environment variables MAX_WAITING_TOKENS,
    CACHE_MB, ENGINE, PROMPTS_IN_TEXTS, and those of `weights.resolve`, are read at the start.
    """

    name: str
    """The checkpoint's name: `small`, a directory's or a repository's."""
    model: str
    """Which weights compute: only vectors of the same value may be compared."""
    engine: Engine

    def __init__(self, weights: str | None = None) -> None:
        """`weights` is what WEIGHTS may be; None or "" is the genuine model, pinned."""
        self._weights = weights
        self.started = False

    async def __aenter__(self) -> "Service":
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self.close)

    def start(self) -> None:
        """Load the checkpoint and prove it right. Raises in one sentence, most often WeightsError, when it cannot."""
        started = time.perf_counter()
        prompts_in_texts()  # a wrong setting is to be told before the first request
        checkpoint = weights.resolve(self._weights)
        logger.info("loading %s from %s, SHA-256 %s", checkpoint.name, checkpoint.source, checkpoint.sha256)
        self.engine = engine.load(checkpoint.directory, measured=weights.measurements())
        self.name = checkpoint.name.partition("@")[0]
        self.model = checkpoint.computed_in(self.engine.number_format)
        checked = time.perf_counter()
        proof = in_own_thread(lambda: selfcheck.check(self.engine, checkpoint.directory, checkpoint.canaries))
        logger.info("self-check in %.2f s: %s", time.perf_counter() - checked, proof)
        canary_ids = self.engine.tokenizer.encode([""], [CANARY_TEXT])[0].ids
        canary_vector = in_own_thread(lambda: self.engine.embed([canary_ids])[0])
        max_waiting_tokens = settings.number("MAX_WAITING_TOKENS", MAX_WAITING_BATCHES * self.engine.batch_tokens)
        self.batcher = Batcher(self.engine, max_waiting_tokens, settings.number("CACHE_MB", CACHE_MB) << 20)
        allowed_error = selfcheck.allowed_error(self.engine.number_format)
        self._health = Health(self.batcher, canary_ids, canary_vector, allowed_error)
        self.started = True
        seconds = time.perf_counter() - started
        logger.info("%s ready in %.1f s: %s", checkpoint.name, seconds, self.engine.description)

    def close(self) -> None:
        """End the engine's thread; requests that still wait raise EngineStopped."""
        self.batcher.close()

    async def healthy(self) -> bool:
        """Return whether the engine still computes, and computes the vectors that it did at the start."""
        return await self._health.check()

    async def embed(self, request: Texts, options: Options) -> Embedded:
        """Return the vectors of all texts. When it is cancelled, what only this request waits for is not computed.

        Raises ValueError naming the text that cannot be embedded as asked, and why (TooLong where it is too long);
        RuntimeError naming the text that the engine failed at; Busy when too much is waiting; EngineStopped.
        """
        self.check(options)
        prepared = await self._prepare(request, options)
        try:
            vectors, cost = await self.batcher.embed(prepared.token_ids, prepared.ranges)
        except EngineFailed as failed:
            raise RuntimeError(f"{request.name(prepared.pass_texts[failed.position])}: {failed}") from None
        vectors = await off_loop(vectors.size > NUMBERS_ON_LOOP, options.finish, vectors)
        owners, is_whole = prepared.owners, options.chunking is None
        truncated = [vector for vector, was_cut in enumerate(prepared.truncated) if was_cut]
        prompted = sorted({owner for owner, had_one in zip(owners, prepared.prompted, strict=True) if had_one})
        self.batcher.count(truncated=len(truncated), prompted=len(prompted))
        return Embedded(
            vectors=vectors[0] if request.single and is_whole else vectors,
            owners=owners,
            token_counts=prepared.token_counts,
            truncated=truncated,
            prompted=prompted,
            chunks=None
            if is_whole
            else [[text, span.start, span.end] for text, span in zip(owners, prepared.spans, strict=True)],
            cost=cost,
        )

    def check(self, options: Options) -> None:
        """Raise ValueError for options that this engine does not have."""
        if options.late_chunking and not self.engine.pools_ranges:
            raise ValueError("late_chunking: ENGINE=reference has none; leave it out, or use ENGINE=packed")

    async def _prepare(self, request: Texts, options: Options) -> Prepared:
        """Tokenize. Raises ValueError naming the text, or the title, that cannot be; TooLong where it is too long."""
        is_large = sum(map(len, request.texts)) > CHARACTERS_ON_LOOP
        try:
            return await off_loop(
                is_large, prepare, self.engine.tokenizer, request.texts, request.titles, options, MAX_CHUNKS
            )
        except TextRefused as refused:
            name = request.title_name if refused.is_prompt else request.name
            kind = ValueError if isinstance(refused, PromptRefused) else TooLong
            raise kind(f"{name(refused.position)}: {refused.reason}") from None


async def off_loop(is_large: bool, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Return work(*args): in another thread if it is large, so that no request holds up the others."""
    if is_large:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)
