"""What every API calls: texts and options in, vectors and facts about them out. It knows neither Cog nor HTTP.

async with Service("small") as service:
    embedded = await service.embed(Texts(["a text", "another"]), Options(task="clustering"))
"""

import asyncio
import gc
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

import engine
import selfcheck
import settings
import weights
from batching.batcher import Batcher
from batching.errors import EngineFailed
from batching.health import Health
from batching.pools import CHARACTERS, NUMBERS, run, run_in_pieces
from batching.request import Cost
from engine.contract import Engine
from engine.threads import in_own_thread
from engine.tokenizer import TextRefused
from texts.documents import prepare_documents
from texts.limits import MAX_CHUNKS, MAX_REQUEST_TOKENS, Limits, TooManyTokens
from texts.options import Options, prompts_in_texts
from texts.prepare import Prepared, characters_to_read, prepare, prepare_in_pieces
from texts.prompts import PromptRefused
from texts.request import Texts

logger = logging.getLogger(__name__)

CANARY_TEXT = "Is the canary still singing?"
# What may wait by default: seconds of work for a GPU, which has room for the largest request allowed.
MAX_WAITING_BATCHES = 256
CACHE_MB = 64
# Single texts, such as frequent queries, are not prepared again when they return; this many take some 10 MB.
REMEMBERED_CHARS = 256
REMEMBERED_TEXTS = 4096
# In English. A request first claims an estimate, and the exact number once its tokens are counted.
CHARACTERS_A_TOKEN = 4


class TooLong(ValueError):
    """A text, or a title, that does not fit into the model's limit of tokens."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of one request, in the order of its texts, and facts about them."""

    vectors: np.ndarray
    """[n, width] as the options have it, [width] for a single text without chunking."""
    owners: list[int]
    """The position of each vector's text."""
    token_counts: list[int]
    """The tokens that each vector is the mean of; prompt, `<bos>` and `<eos>` count."""
    truncated: list[int]
    """The vectors whose text was cut to the limit."""
    prompted: list[int]
    """The positions of the texts that began with one of the model's prompts and got no other."""
    chunks: list[list[int]] | None
    """With chunking, [text, start, end] of each vector, which is of that text's characters [start, end)."""
    cost: Cost

    @property
    def tokens(self) -> int:
        """Tokens of all vectors together."""
        return sum(self.token_counts)


class Service:
    """One checkpoint on one device, for any number of requests at once.

    `start` and `close` block; `async with` calls them in another thread. `start` reads the environment variables
    MAX_WAITING_TOKENS, MAX_REQUEST_TOKENS, CACHE_MB, ENGINE, PROMPTS_IN_TEXTS, and those of `weights.resolve`.
    """

    name: str
    """The checkpoint's name: `small`, a directory's or a repository's."""
    model: str
    """The weights that compute; compare only vectors for which this is equal."""
    engine: Engine

    def __init__(self, weights: str | None = None) -> None:
        """`weights` takes the values of WEIGHTS; None or "" is the official model, pinned."""
        self._weights = weights
        self.started = False

    async def __aenter__(self) -> "Service":
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self.close)

    def start(self) -> None:
        """Load the checkpoint and prove it right. Raises an error of one sentence, most often WeightsError."""
        started = time.perf_counter()
        prompts_in_texts()  # reports a wrong setting before the first request
        self._limits = Limits(MAX_CHUNKS, settings.count("MAX_REQUEST_TOKENS", MAX_REQUEST_TOKENS))
        checkpoint = weights.resolve(self._weights)
        logger.info("loading %s from %s, SHA-256 %s", checkpoint.name, checkpoint.source, checkpoint.sha256)
        with uncollected():
            self._load(checkpoint)
        self.started = True
        seconds = time.perf_counter() - started
        logger.info("%s ready in %.1f s: %s", checkpoint.name, seconds, self.engine.description)

    def _load(self, checkpoint: weights.Checkpoint) -> None:
        """Load the checkpoint and prove it right."""
        self.engine = engine.load(checkpoint.directory, measured=weights.measurements())
        self._remembered = lru_cache(REMEMBERED_TEXTS)(self._prepare_one)
        self.name = checkpoint.name.partition("@")[0]
        self.model = checkpoint.computed_in(self.engine.number_format)
        checked = time.perf_counter()
        proof = in_own_thread(lambda: selfcheck.check(self.engine, checkpoint.directory, checkpoint.canaries))
        logger.info("self-check in %.2f s: %s", time.perf_counter() - checked, proof)
        canary_ids = self.engine.tokenizer.encode([""], [CANARY_TEXT])[0].ids
        canary_vector = in_own_thread(lambda: self.engine.embed([canary_ids])[0])
        max_waiting_tokens = settings.count("MAX_WAITING_TOKENS", MAX_WAITING_BATCHES * self.engine.batch_tokens)
        self.batcher = Batcher(self.engine, max_waiting_tokens, settings.number("CACHE_MB", CACHE_MB) << 20)
        allowed_error = selfcheck.allowed_error(self.engine.number_format)
        self._health = Health(self.batcher, canary_ids, canary_vector, allowed_error)

    def close(self) -> None:
        """End the engine's thread. Requests that still wait raise EngineStopped."""
        self.batcher.close()

    async def healthy(self) -> bool:
        """Return whether the engine still computes the vectors that it computed at the start."""
        return await self._health.check()

    async def embed(self, request: Texts, options: Options) -> Embedded:
        """Check the texts and return their vectors. On cancellation, texts that only this request needs are dropped.

        Raises ValueError naming the text that cannot be embedded as asked, and why (TooLong where it is too long);
        RuntimeError naming the text that the engine failed at; Busy when too much is waiting; EngineStopped.
        """
        texts, titles = await run(CHARACTERS, request.characters, request.checked, options.task)
        self.check(options)
        if request.documents is not None:
            self.engine.check_late_chunking()
        with self.batcher.claim(_estimated_tokens(texts, self.engine.tokenizer.max_tokens, options)) as claim:
            prepared = await self._prepare(request, texts, titles, options)
            try:
                vectors, cost = await self.batcher.embed(prepared.token_ids, prepared.ranges, claim)
            except EngineFailed as failed:
                raise RuntimeError(f"{request.name(prepared.pass_texts[failed.position])}: {failed}") from None
        embedded = await run(NUMBERS, vectors.size, _embedded, request, options, prepared, vectors, cost)
        self.batcher.count(truncated=len(embedded.truncated), prompted=len(embedded.prompted))
        return embedded

    def check(self, options: Options) -> None:
        """Raise ValueError for options that this engine does not support."""
        if options.late_chunking:
            self.engine.check_late_chunking()

    async def _prepare(
        self, request: Texts, texts: Sequence[str], titles: Sequence[str | None], options: Options
    ) -> Prepared:
        """Tokenize the request's checked texts. Raises ValueError naming the text, or the title, that is refused."""
        tokenizer, limits = self.engine.tokenizer, self._limits
        try:
            if request.documents is not None:
                pieces = prepare_documents(tokenizer, texts, request.documents, options, limits)
            elif len(texts) == 1 and titles[0] is None and len(texts[0]) <= REMEMBERED_CHARS:
                return self._remembered(texts[0], options)
            else:
                pieces = prepare_in_pieces(tokenizer, texts, titles, options, limits)
            return await run_in_pieces(CHARACTERS, characters_to_read(texts, titles, options), pieces)
        except TextRefused as refused:
            name = request.title_name if refused.is_prompt else request.name
            kind = ValueError if isinstance(refused, PromptRefused) else TooLong
            raise kind(f"{name(refused.position)}: {refused.reason}") from None
        except TooManyTokens as error:
            field = "chunk" if options.chunking else request.name(0).partition("[")[0]
            raise ValueError(f"{field}: {error}") from None

    def _prepare_one(self, text: str, options: Options) -> Prepared:
        return prepare(self.engine.tokenizer, [text], [None], options, self._limits)


@contextmanager
def uncollected() -> Iterator[None]:
    """Collect no garbage in the block, as torch is imported in it.

    The collector would look through torch's thousand modules again and again, which takes an eighth of the import.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _estimated_tokens(texts: Sequence[str], max_tokens: int, options: Options) -> int:
    """Return about how many tokens the model will read, before anything is tokenized."""
    if (chunking := options.chunking) is None:
        return sum(min(len(text) // CHARACTERS_A_TOKEN, max_tokens) for text in texts)
    return sum(map(len, texts)) // CHARACTERS_A_TOKEN * chunking.chunk // (chunking.chunk - chunking.overlap)


def _embedded(request: Texts, options: Options, prepared: Prepared, vectors: np.ndarray, cost: Cost) -> Embedded:
    """Return the answer to a request, given what was prepared of it and the engine's vectors."""
    vectors = options.finish(vectors)
    owners, chunks = prepared.owners, None
    if options.chunking is not None:
        chunks = [[text, span.start, span.end] for text, span in zip(owners, prepared.spans, strict=True)]
    return Embedded(
        vectors=vectors[0] if request.single and chunks is None else vectors,
        owners=owners,
        token_counts=prepared.token_counts,
        truncated=[vector for vector, was_cut in enumerate(prepared.truncated) if was_cut],
        prompted=sorted({owner for owner, had_one in zip(owners, prepared.prompted, strict=True) if had_one}),
        chunks=chunks,
        cost=cost,
    )
