"""What every engine does, from token ids to vectors: the abstract class, its constants and its errors."""

from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise

import numpy as np

from engine.tokenizer import Tokenizer

DIMENSIONS = 768
EFFECTIVE_WINDOW = 257
"""The smallest |i - j| that a token in a sliding-window layer does not see."""

TABLE = "embed_tokens.weight"
"""The embedding table's name in a checkpoint, after a prefix in a file of several towers."""
OTHER_TOWERS = ("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio.")
"""What the names of tensors begin with that only images and sounds need."""

TokenIds = Sequence[int]
"""The token ids of a text. The tokenizer gives arrays, `array("I")`, whose bytes are copied into a batch at once; any
other sequence is read id by id."""

Ranges = Sequence[Sequence[tuple[int, int]]]
"""For each text, ranges [first, last) of its tokens. Each range gives a vector, the mean over these tokens alone."""


class CheckpointError(ValueError):
    """A checkpoint whose vectors would differ from EmbeddingGemma's. Names the file and what was expected of it."""


class DeviceError(RuntimeError):
    """A device that cannot be used: it or its driver is too old, or memory is short. Names the remedy."""


class Engine(ABC):
    """Token ids to vectors. Only one thread at a time may use an engine; any number may use its tokenizer."""

    tokenizer: Tokenizer
    number_format: str
    """What the layers' matmuls compute in: float32, float16, bfloat16 or int8."""
    description: str
    """Engine, number format and device in words, for the logs."""
    batch_tokens: int
    """How many tokens in a forward pass keep the device busy; fewer once memory has run out."""
    bulk: int = 1
    """How many such batches `embed` computes at once, as nobody waits for its first texts; 1 after memory ran out."""
    batches_in_flight: int = 1
    """2 where `launch` returns while the device still computes, so the device need not wait for its next batch."""

    pools_ranges: bool = True
    """Whether `launch` takes ranges, which late chunking needs."""

    def check_late_chunking(self) -> None:
        """Raise ValueError where this engine takes no ranges."""
        if not self.pools_ranges:
            raise ValueError("late_chunking: ENGINE=reference has none; leave it out, or use ENGINE=packed")

    @abstractmethod
    def launch(self, token_ids: Sequence[TokenIds], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        """Start computing one batch and return a function that waits for its vectors; see `embed`.

        The batch should have about `batch_tokens` tokens, sorted by length: only neighbours of equal length share a
        call of `grouped_attention`. The caller calls the function once, in the same thread.
        """

    def embed(self, token_ids: Sequence[TokenIds], ranges: Ranges | None = None) -> np.ndarray:
        """Return the vectors before the final normalisation: float32 [texts, 768], in the order of the texts.

        With `ranges` each text gives a vector for each of its ranges, together [ranges, 768]. Raises ValueError when a
        text has no tokens, and where the engine takes no ranges.
        """
        return self._embed_in_batches(token_ids, ranges, self.batch_tokens * self.bulk)

    def _embed_in_batches(self, token_ids: Sequence[TokenIds], ranges: Ranges | None, budget: int) -> np.ndarray:
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


def as_array(ids: TokenIds) -> "array[int]":
    """Return token ids as an array of 4 bytes each, itself if they are one."""
    return ids if isinstance(ids, array) else array("I", ids)


def vector_bounds(texts: int, ranges: Ranges | None) -> Sequence[int]:
    """Return where each text's vectors begin in the result, and where the last text's end."""
    return range(texts + 1) if ranges is None else list(accumulate(map(len, ranges), initial=0))


def vector_rows(texts: int, ranges: Ranges | None) -> list[range]:
    """Return the rows of each text's vectors in the result: one row, or a row for each of its ranges."""
    return [range(start, end) for start, end in pairwise(vector_bounds(texts, ranges))]


def split_by_tokens(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut the texts, longest first, into batches of at most `budget` tokens; a longer text gets its own batch."""
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if lengths[i] > room:
            batches.append([])
            room = budget
        batches[-1].append(i)
        room -= lengths[i]
    return batches
