"""One request on its way through the batches: its rows, its future, and what it cost."""

import asyncio
import contextlib
import threading
import time
from functools import partial
from typing import NamedTuple

import numpy as np

from batching.scheduler import Job
from engine.contract import DIMENSIONS, Ranges, vector_rows


class Cost(NamedTuple):
    """What a request took, times in milliseconds."""

    queue_ms: float  # from its arrival to the start of its first batch; 0 when all came from the cache
    compute_ms: float  # from there to its last vector
    batch_size: int  # texts in the largest batch that computed for it, others' included
    cache_hits: int


class Request:
    """The vectors of one request, filled text by text as batches come back, by one thread at a time."""

    def __init__(self, count: int, loop: asyncio.AbstractEventLoop, ranges: Ranges | None = None) -> None:
        """For `count` texts, with a vector each, or one for each of its ranges."""
        self._rows = vector_rows(count, ranges)
        self.vectors = np.empty((self._rows[-1].stop, DIMENSIONS), dtype=np.float32)
        self.jobs: list[Job[Request]] = []
        self.cost: asyncio.Future[Cost] = loop.create_future()
        """Done when all texts are filled; raises what a batch of it raised."""
        self.gone = False
        """It was answered or cancelled: nothing is computed for it any more."""
        self._loop = loop
        self._thread = threading.get_ident()
        self._missing = count
        self._cache_hits = 0
        self._largest_batch = 0
        self._arrived = time.perf_counter()
        self._started: float | None = None

    def hit(self, position: int, vectors: np.ndarray) -> None:
        """Fill a text's rows from the cache."""
        self._cache_hits += 1
        self.fill(position, vectors)

    def start(self, batch_size: int) -> None:
        """Note that a batch of `batch_size` texts begins to compute for it."""
        self._started = self._started or time.perf_counter()
        self._largest_batch = max(self._largest_batch, batch_size)

    def fill(self, position: int, vectors: np.ndarray) -> None:
        """Set a text's rows; the last text resolves `cost`."""
        rows = self._rows[position]
        self.vectors[rows.start : rows.stop] = vectors
        self._missing -= 1
        if self._missing:
            return
        now = time.perf_counter()
        started = self._started or now
        queue_ms = (started - self._arrived) * 1000 if self._started else 0.0
        self._settle(Cost(queue_ms, (now - started) * 1000, self._largest_batch, self._cache_hits))

    def fail(self, error: Exception) -> None:
        """Let `cost` raise."""
        self._settle(error)

    def _settle(self, outcome: Cost | Exception) -> None:
        if threading.get_ident() == self._thread:  # all of it was in the cache
            _settle(self.cost, outcome)
            return
        # The loop is closed when a server stops while a batch computes: nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(partial(_settle, self.cost, outcome))


def _settle(future: "asyncio.Future[Cost]", outcome: Cost | Exception) -> None:
    if future.done():  # cancelled, or failed by another of its batches
        return
    if isinstance(outcome, Cost):
        future.set_result(outcome)
    else:
        future.set_exception(outcome)
