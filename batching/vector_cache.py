"""Vectors by token ids: the exact results of earlier texts."""

from typing import NamedTuple

import numpy as np
from cachetools import LRUCache

# What Python and the cache itself keep for an entry, beside the ids and the vectors.
OVERHEAD_BYTES = 400


class _Entry(NamedTuple):
    vectors: np.ndarray
    size: int


class VectorCache:
    """The vectors of the most recently used texts, within a number of bytes.

    They are float32 [1, 768], or a row for each range of a text's tokens, before cut and normalisation. All tasks,
    dimensions, precisions and formats share them, because the key is the token ids, prompt included.
    """

    def __init__(self, size_bytes: int) -> None:
        self._entries: LRUCache[bytes, _Entry] = LRUCache(size_bytes, getsizeof=lambda entry: entry.size)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> np.ndarray | None:
        """Return the vectors of these token ids if they are known."""
        entry = self._entries.get(key)
        return None if entry is None else entry.vectors

    def put(self, key: bytes, vectors: np.ndarray) -> None:
        """Keep a copy of the vectors, and let the longest unused ones go for it."""
        size = len(key) + vectors.nbytes + OVERHEAD_BYTES
        if size <= self._entries.maxsize:
            self._entries[key] = _Entry(vectors.copy(), size)
