"""What every engine does, token ids to vectors: the abstract class, its constants and its errors."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from engine.tokenizer import Tokenizer

DIMENSIONS = 768
EFFECTIVE_WINDOW = 257
"""The smallest |i - j| that a token of a sliding-window layer does not see."""

Ranges = Sequence[Sequence[tuple[int, int]]]
"""For each text, ranges [first, last) of its tokens. Each range gives a vector: the mean over these tokens alone."""


class CheckpointError(ValueError):
    """A checkpoint that would give other vectors than EmbeddingGemma's pipeline: the file, and what it should be."""


class DeviceError(RuntimeError):
    """A device that cannot do what is asked of it (too old, too old a driver, too little memory), and the remedy."""


class Engine(ABC):
    """Token ids to vectors. One thread at a time uses an engine; any number use its tokenizer."""

    tokenizer: Tokenizer
    number_format: str
    """What the layers compute in: float32, float16 or bfloat16."""
    description: str
    """Engine, number format and device in words, for the logs."""
    batch_tokens: int
    """Tokens in one forward pass that keep the device busy; smaller once memory has run out."""
    bulk: int = 1
    """Such batches that `embed` computes at once, as nobody waits for one of its texts."""
    pools_ranges: bool = True
    """Whether `launch` takes ranges."""
    batches_in_flight: int = 1
    """2 where `launch` returns while the device still computes, so the device never waits for its next batch."""

    @abstractmethod
    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Start computing one batch and return a function that waits for its vectors; see `embed`.

        The batch should have about `batch_tokens` tokens, sorted by length: only neighbours of equal length share a
        call of `grouped_attention`. The caller calls the function once, in the same thread.
        """

    def embed(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> np.ndarray:
        """Return the vectors before the final normalisation: float32 [texts, 768], in the order of the texts.

        With `ranges` each text gives a vector for each of its ranges, together [ranges, 768]; not every engine takes
        them (`pools_ranges`). Raises ValueError when a text has no tokens.
        """
        return self._embed_in_batches(token_ids, ranges, self.batch_tokens * self.bulk)

    def _embed_in_batches(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None, budget: int) -> np.ndarray:
        """Embed in batches of at most `budget` tokens."""
        rows = vector_rows(len(token_ids), ranges)
        vectors = np.empty((rows[-1].stop if rows else 0, DIMENSIONS), dtype=np.float32)
        launched: deque[tuple[list[int], Callable[[], np.ndarray]]] = deque()
        batches = deque(split_by_tokens([len(ids) for ids in token_ids], budget))
        while batches or launched:
            if batches and len(launched) < self.batches_in_flight:
                batch = batches.popleft()
                batch_ranges = None if ranges is None else [ranges[i] for i in batch]
                launched.append((batch, self.launch([token_ids[i] for i in batch], batch_ranges)))
            else:
                batch, wait = launched.popleft()
                vectors[[row for i in batch for row in rows[i]]] = wait()
        return vectors


def vector_rows(texts: int, ranges: Ranges | None) -> list[range]:
    """Return for each text the rows of its vectors among those of all: one row, or one for each of its ranges."""
    if ranges is None:
        return [range(row, row + 1) for row in range(texts)]
    ends = np.cumsum([len(of_text) for of_text in ranges]).tolist()
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def split_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut the texts, longest first, into batches of at most `budget` tokens; a longer text is a batch by itself."""
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if lengths[i] > room:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= lengths[i]
    return batches
