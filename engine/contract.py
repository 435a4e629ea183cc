"""The contract of every engine: token ids to vectors. Constants, errors and the abstract class."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from engine.tokenizer import Tokenizer

DIMENSIONS = 768
EFFECTIVE_WINDOW = 257

Ranges = Sequence[Sequence[tuple[int, int]]]
"""Of each text, ranges [first, last) of its tokens: each gives a vector, the mean over these tokens alone."""


class CheckpointError(ValueError):
    """A checkpoint that would give other vectors than EmbeddingGemma's pipeline: what was expected, what was found."""


class DeviceError(RuntimeError):
    """A device that cannot do what is asked of it: too old, its driver too old, too little memory; and the remedy."""


class Engine(ABC):
    """Token ids to vectors. An engine is used by one thread at a time; its tokenizer by any number."""

    tokenizer: Tokenizer
    number_format: str
    """What the layers compute in: float32, float16 or bfloat16."""
    description: str
    """Engine, number format and device in words, for the logs."""
    batch_tokens: int
    """Tokens in one forward pass that keep the device busy; it may shrink when memory runs out."""
    pools_ranges: bool = True
    """Whether `launch` takes ranges."""
    batches_in_flight: int = 1
    """2 where `launch` returns while a device still computes, so that it never waits for its next batch."""

    @abstractmethod
    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Start computing one batch and return a function that waits for its vectors; see `embed`.

        Its texts should have `batch_tokens` tokens together. The function is called once, by the same thread.
        """

    def embed(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> np.ndarray:
        """Return the vectors before the final normalisation: float32 [n, 768], in the order of the texts.

        With `ranges` each text gives a vector for each of its ranges, [ranges of all, 768]; the reference engine has
        none. Raises ValueError when a text has no tokens.
        """
        rows = vector_rows(len(token_ids), ranges)
        vectors = np.empty((rows[-1].stop if rows else 0, DIMENSIONS), dtype=np.float32)
        launched: deque[tuple[list[int], Callable[[], np.ndarray]]] = deque()
        for batch in split_by_tokens([len(ids) for ids in token_ids], self.batch_tokens):
            its_ranges = None if ranges is None else [ranges[i] for i in batch]
            wait = self.launch([token_ids[i] for i in batch], its_ranges)
            launched.append(([row for i in batch for row in rows[i]], wait))
            if len(launched) == self.batches_in_flight:
                _collect(launched, vectors)
        while launched:
            _collect(launched, vectors)
        return vectors


def _collect(launched: deque[tuple[list[int], Callable[[], np.ndarray]]], vectors: np.ndarray) -> None:
    rows, wait = launched.popleft()
    vectors[rows] = wait()


def vector_rows(texts: int, ranges: Ranges | None) -> list[range]:
    """Return the rows of each text's vectors among those of all: one, or as many as it has ranges."""
    ends = np.cumsum([1] * texts if ranges is None else [len(its) for its in ranges]).tolist()
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def split_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut the texts, longest first, into batches of at most `budget` tokens; a longer one is a batch by itself."""
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if lengths[i] > room:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= lengths[i]
    return batches
