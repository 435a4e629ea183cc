"""The exact vectors of earlier texts, by token ids."""

from operator import itemgetter

import numpy as np
from cachetools import LRUCache

# What Python and the cache need for an entry beside its key and vectors.
OVERHEAD_BYTES = 400


class VectorCache:
    """The vectors of the most recently used texts, within a number of bytes.

    A text's vectors are float32 [1, 768], or a row for each range of its tokens, before cut and normalisation. All
    tasks, dimensions, precisions and formats share them, because the key holds the token ids, prompt included.
    """

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRUCache[bytes, tuple[np.ndarray, int]] = LRUCache(max_bytes, getsizeof=itemgetter(1))

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> np.ndarray | None:
        """Return the vectors under this key, None if there are none."""
        entry = self._entries.get(key)
        return None if entry is None else entry[0]

    def put(self, key: bytes, vectors: np.ndarray) -> None:
        """Keep a copy of the vectors; the least recently used entries make room."""
        size = len(key) + vectors.nbytes + OVERHEAD_BYTES
        if size <= self._entries.maxsize:
            kept = vectors.copy()
            kept.flags.writeable = False  # requests share it
            self._entries[key] = (kept, size)
