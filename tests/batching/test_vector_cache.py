"""Vectors that are kept, and for how long."""

import numpy as np

from batching.vector_cache import OVERHEAD_BYTES, VectorCache
from engine.contract import DIMENSIONS

VECTOR = np.ones((1, DIMENSIONS), dtype=np.float32)


def test_the_cache_keeps_the_last_used_within_its_bytes() -> None:
    entry_bytes = 40 + VECTOR.nbytes + OVERHEAD_BYTES
    cache = VectorCache(3 * entry_bytes)
    for name in (b"a", b"b", b"c"):
        cache.put(name * 40, VECTOR)
    assert cache.get(b"a" * 40) is not None
    cache.put(b"d" * 40, VECTOR)
    assert [cache.get(name * 40) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_a_vector_larger_than_the_cache_is_not_kept() -> None:
    cache = VectorCache(VECTOR.nbytes)
    cache.put(b"key", VECTOR)
    assert cache.get(b"key") is None


def test_a_kept_vector_does_not_change_with_the_answer() -> None:
    vector = VECTOR.copy()
    cache = VectorCache(10**6)
    cache.put(b"key", vector)
    vector[:] = 0
    kept = cache.get(b"key")
    assert kept is not None and (kept == 1).all()
