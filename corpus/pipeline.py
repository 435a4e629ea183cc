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
from engine.tokenizer import TextRefused, Tokenizer
from texts.chunking import Pass
from texts.options import Options
from texts.prepare import Prepared, gather, passes_of

# Token ids to float32 [vectors, 768] before normalisation; with ranges, a vector for each range of each text's tokens.
Embed = Callable[[Sequence[Sequence[int]], Ranges | None], np.ndarray]

# Texts tokenized at once: the tokenizer's threads share them out, and a text that it refuses stops no more than these.
TEXTS_AT_ONCE = 1024
VECTORS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Tokenized:
    """The texts of a window as the model reads them. `refused` texts have no pass."""

    prepared: Prepared
    refused: dict[int, str]


def tokenize(tokenizer: Tokenizer, options: Options, window: Window) -> Tokenized:
    """Tokenize the window's texts. Thread-safe, and mostly outside the interpreter's lock."""
    passes: list[tuple[int, list[Pass]]] = []
    refused: dict[int, str] = {}

    def read(chosen: range) -> None:
        texts, titles = window.texts[chosen.start : chosen.stop], window.titles[chosen.start : chosen.stop]
        passes.extend(zip(chosen, passes_of(tokenizer, texts, titles, options), strict=True))

    for start in range(0, len(window.texts), TEXTS_AT_ONCE):
        chosen = range(start, min(start + TEXTS_AT_ONCE, len(window.texts)))
        try:
            read(chosen)
        except TextRefused:
            for i in chosen:
                try:
                    read(range(i, i + 1))
                except TextRefused as error:
                    refused[i] = f"{'its prompt' if error.is_prompt else 'the text'} {error.reason}"
    return Tokenized(gather(passes, options), refused)


def compute(embed: Embed, options: Options, prepared: Prepared) -> np.ndarray:
    """Return the vectors as they are stored: [vectors, width]."""
    ids = prepared.token_ids
    vectors = embed(ids, prepared.ranges) if ids else np.empty((0, options.embedding_dim), dtype=np.float32)
    stored = np.empty((len(vectors), options.width), dtype=encoding.WIRE_DTYPES[options.precision])
    for start in range(0, len(vectors), VECTORS_AT_ONCE):  # the exact normalisation takes a multiple of its input
        stored[start : start + VECTORS_AT_ONCE] = options.finish(vectors[start : start + VECTORS_AT_ONCE])
    return stored


def shard_of(window: Window, tokenized: Tokenized, vectors: np.ndarray) -> Shard:
    """Put together what is stored of a window."""
    prepared = tokenized.prepared
    return Shard(
        window=window,
        vectors=vectors,
        owners=np.array(prepared.owners, dtype=np.int64),
        token_counts=np.array(prepared.token_counts, dtype=np.int32),
        truncated=np.array(prepared.truncated, dtype=bool),
        ranges=np.array([(span.start, span.end) for span in prepared.spans], dtype=np.int64).reshape(-1, 2),
        refused=tokenized.refused,
        tokens=sum(map(len, prepared.token_ids)),
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

    def __init__(self, tokenizer: Tokenizer, embed: Embed, settings: Options, parts: Parts, skip: bool) -> None:
        """`embed` is only ever called by one thread; `skip` stores refused rows instead of stopping at one."""
        self._tokenizer, self._embed, self._settings, self._parts, self._skip = tokenizer, embed, settings, parts, skip
        self._stages = [ThreadPoolExecutor(1, name) for name in ("tokenize", "compute", "store")]

    def submit(self, window: Window) -> "Future[Done]":
        """Start on a window; the future is done when its shard is on the disk, and raises Refused or OSError."""
        tokenizing, computing, storing = self._stages
        tokenized = tokenizing.submit(self._tokenize, window)
        vectors = computing.submit(lambda: compute(self._embed, self._settings, tokenized.result().prepared))
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
