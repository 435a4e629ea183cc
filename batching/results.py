"""Vectors by token ids: the exact results of earlier texts."""

from typing import NamedTuple

import numpy as np
from cachetools import LRUCache

# What Python and the cache itself keep for an entry, beside the ids and the vector.
OVERHEAD_BYTES = 400


class _Entry(NamedTuple):
    vector: np.ndarray
    size: int


class Results:
    """The most recently used vectors (float32 [768], before cut and normalisation) within a number of bytes.

    All tasks, dimensions, precisions and formats share them, because the key is the token ids, prompt included.
    """

    def __init__(self, size_bytes: int) -> None:
        self._entries: LRUCache[bytes, _Entry] = LRUCache(size_bytes, getsizeof=lambda entry: entry.size)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> np.ndarray | None:
        """Return the vector of these token ids if it is known."""
        entry = self._entries.get(key)
        return None if entry is None else entry.vector

    def put(self, key: bytes, vector: np.ndarray) -> None:
        """Keep a copy of the vector, and let the longest unused ones go for it."""
        size = len(key) + vector.nbytes + OVERHEAD_BYTES
        if size <= self._entries.maxsize:
            self._entries[key] = _Entry(vector.copy(), size)
