"""What is done with a window: tokenize, compute, store; each stage in a thread, so that they overlap."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

import encoding
from corpus.blocks import Window
from corpus.rows import CorpusError
from corpus.shards import Parts, Shard
from engine.contract import Ranges
from engine.tokenizer import TextRefused, Tokenizer, Truncate
from tasks import prompt_for
from texts.chunking import Chunking, Pass, passes, uncut

# Token ids to float32 [vectors, 768] before normalisation; with ranges, a vector for each range of each text's tokens.
Embed = Callable[[Sequence[Sequence[int]], Ranges | None], np.ndarray]

# Texts tokenized at once: the tokenizer's threads share them out, and a text that it refuses stops no more than these.
TEXTS_AT_ONCE = 1024
VECTORS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Settings:
    """What the vectors are to be. Raises ValueError for a task that has no place for titles, if there are any."""

    task: str = "retrieval_document"
    embedding_dim: int = 768
    normalize: bool = True
    precision: str = "float32"
    truncate: Truncate = "end"
    chunking: Chunking | None = None

    @property
    def width(self) -> int:
        """Components of a stored vector: bytes where eight signs are packed into one."""
        return self.embedding_dim // 8 if self.precision in ("binary", "ubinary") else self.embedding_dim

    def described(self) -> dict[str, str]:
        """Return the settings as the output's metadata has them."""
        facts = {
            "task": self.task,
            "dimensions": self.embedding_dim,
            "precision": self.precision,
            "normalized": self.normalize,
            "truncate": self.truncate,
        }
        if self.chunking:
            facts |= {"chunk": self.chunking.chunk, "overlap": self.chunking.overlap, "late": self.chunking.late}
        return {name: str(value).lower() for name, value in facts.items()}


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The texts of a window as the model reads them; `owners[i]` is the text of pass i. `refused` texts have none."""

    passes: list[Pass]
    owners: list[int]
    refused: dict[int, str]


def tokenize(tokenizer: Tokenizer, settings: Settings, window: Window) -> Tokenized:
    """Tokenize the window's texts. Thread-safe, and mostly outside the interpreter's lock."""
    found = Tokenized([], [], {})
    for start in range(0, len(window.texts), TEXTS_AT_ONCE):
        chosen = range(start, min(start + TEXTS_AT_ONCE, len(window.texts)))
        try:
            _tokenize(tokenizer, settings, window, chosen, found)
        except TextRefused:
            for i in chosen:
                try:
                    _tokenize(tokenizer, settings, window, range(i, i + 1), found)
                except TextRefused as refused:
                    found.refused[i] = f"{'its prompt' if refused.is_prompt else 'the text'} {refused.reason}"
    return found


def _tokenize(tokenizer: Tokenizer, settings: Settings, window: Window, chosen: range, found: Tokenized) -> None:
    texts = window.texts[chosen.start : chosen.stop]
    prompts = [prompt_for(settings.task, title) for title in window.titles[chosen.start : chosen.stop]]
    if settings.chunking:
        cut = passes(tokenizer, prompts, texts, settings.chunking)
    else:
        tokenized = tokenizer.encode(prompts, texts, settings.truncate)
        cut = [[uncut(one, len(text))] for one, text in zip(tokenized, texts, strict=True)]
    for i, its_passes in zip(chosen, cut, strict=True):
        found.passes.extend(its_passes)
        found.owners.extend([i] * len(its_passes))


def compute(embed: Embed, settings: Settings, tokenized: Tokenized) -> np.ndarray:
    """Return the vectors of the passes' spans as they are stored: [vectors, width]."""
    ids = [one.ids for one in tokenized.passes]
    late = settings.chunking is not None and settings.chunking.late
    ranges = [[(span.first, span.last) for span in one.spans] for one in tokenized.passes] if late else None
    vectors = embed(ids, ranges) if ids else np.empty((0, settings.embedding_dim), dtype=np.float32)
    stored = np.empty((len(vectors), settings.width), dtype=encoding.WIRE_DTYPES[settings.precision])
    for start in range(0, len(vectors), VECTORS_AT_ONCE):  # the exact normalisation takes a multiple of its input
        part = slice(start, start + VECTORS_AT_ONCE)
        cut = encoding.cut(vectors[part], settings.embedding_dim, settings.normalize)
        stored[part] = encoding.convert(cut, settings.precision)
    return stored


def shard_of(window: Window, tokenized: Tokenized, vectors: np.ndarray) -> Shard:
    """Put together what is stored of a window."""
    spans = [(one, span) for one in tokenized.passes for span in one.spans]
    owners = [owner for owner, one in zip(tokenized.owners, tokenized.passes, strict=True) for _ in one.spans]
    return Shard(
        window=window,
        vectors=vectors,
        owners=np.array(owners, dtype=np.int64),
        token_counts=np.array([span.last - span.first for _, span in spans], dtype=np.int32),
        truncated=np.array([one.truncated for one, _ in spans], dtype=bool),
        ranges=np.array([(span.start, span.end) for _, span in spans], dtype=np.int64).reshape(-1, 2),
        refused=tokenized.refused,
        tokens=sum(len(one.ids) for one in tokenized.passes),
    )


class Refused(CorpusError):
    """A row that the tokenizer refuses, where the run is to stop at one."""

    def __init__(self, number: int, problem: str) -> None:
        self.number, self.problem = number, problem
        super().__init__(number, problem)


@dataclass(frozen=True, slots=True)
class Done:
    """A stored window: `computed` texts with `tokens` tokens, for `rows` rows."""

    index: int
    rows: int
    computed: int
    tokens: int


class Pipeline:
    """Windows in, shards on the disk: the next is tokenized while one is computed and the one before is written."""

    def __init__(self, tokenizer: Tokenizer, embed: Embed, settings: Settings, parts: Parts, skip: bool) -> None:
        """`embed` is only ever called by one thread; `skip` stores refused rows instead of stopping at one."""
        self._tokenizer, self._embed, self._settings, self._parts, self._skip = tokenizer, embed, settings, parts, skip
        self._stages = [ThreadPoolExecutor(1, name) for name in ("tokenize", "compute", "store")]

    def submit(self, window: Window) -> "Future[Done]":
        """Start on a window; the future is done when its shard is on the disk, and raises Refused or OSError."""
        tokenizing, computing, storing = self._stages
        tokenized = tokenizing.submit(self._tokenize, window)
        vectors = computing.submit(lambda: compute(self._embed, self._settings, tokenized.result()))
        return storing.submit(partial(self._store, window, tokenized, vectors))

    def _tokenize(self, window: Window) -> Tokenized:
        tokenized = tokenize(self._tokenizer, self._settings, window)
        if tokenized.refused and not self._skip:
            first = min(tokenized.refused)
            raise Refused(window.text_numbers[first], tokenized.refused[first])
        return tokenized

    def _store(self, window: Window, tokenized: "Future[Tokenized]", vectors: "Future[np.ndarray]") -> Done:
        shard = shard_of(window, tokenized.result(), vectors.result())
        self._parts.write(shard)
        return Done(window.index, len(window.numbers), len(window.texts), shard.tokens)

    def close(self) -> None:
        """Drop what has not been started; what has been goes on to the end of its stage."""
        for stage in self._stages:
            stage.shutdown(wait=False, cancel_futures=True)
