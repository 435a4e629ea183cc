"""A request on its way through the batches, and the jobs it is made of: one for each text to compute."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from engine.contract import DIMENSIONS, Ranges, vector_rows


class Cost(NamedTuple):
    """What a request took, times in milliseconds."""

    queue_ms: float  # from its arrival to the start of its first batch; 0 when all came from the cache
    compute_ms: float  # from there to its last vector
    batch_size: int  # texts in the largest batch that computed for it, including those of other requests
    cache_hits: int


@dataclass(eq=False, slots=True)
class Job:
    """One text to compute, for every request that asks for it before its vectors arrive."""

    token_ids: Sequence[int]
    ranges: Sequence[tuple[int, int]] | None = None  # of tokens, a vector for each; None for one of the whole text
    key: bytes | None = None  # in the cache; None when the job is neither shared nor cached
    owners: list[tuple["Request", int]] = field(default_factory=list)  # each with the text's position in the request
    turn: int = 0
    order: int | None = None  # how many jobs were queued before this one; None until it is queued
    started: bool = False

    def __lt__(self, other: "Job") -> bool:
        return (self.turn, self.order or 0) < (other.turn, other.order or 0)


Batch = list[Job]
"""The jobs of one forward pass, shortest text first."""


def batch_ranges(batch: Batch) -> Ranges | None:
    """Return the ranges of each text for `Engine.launch`; None when every text has one vector of all its tokens."""
    if all(job.ranges is None for job in batch):
        return None
    return [[(0, len(job.token_ids))] if job.ranges is None else job.ranges for job in batch]


class Request:
    """The vectors of one request, filled text by text as batches come back, by one thread at a time."""

    def __init__(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None, afresh: bool = False) -> None:
        """Make room for a vector for each text, or with `ranges` for each range; to be called on the event loop.

        Texts to compute `afresh` are not looked up, shared or cached, and not refused as busy.
        """
        self.token_ids = token_ids
        self.ranges = ranges
        self.afresh = afresh
        self._rows = vector_rows(len(token_ids), ranges)
        self.vectors = np.empty((self._rows[-1].stop, DIMENSIONS), dtype=np.float32)
        self.jobs: list[Job] = []
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self.cost: asyncio.Future[Cost] = self._loop.create_future()
        """Done when all texts are filled; raises what a batch of the request raised."""
        self.withdrawn = False
        """Whether the request was answered or cancelled: nothing is computed for it any more."""
        self._missing = len(token_ids)
        self._cache_hits = 0
        self._largest_batch = 0
        self._arrived = time.perf_counter()
        self._started: float | None = None

    @property
    def known_cost(self) -> Cost | None:
        """What the request took; None before all its vectors are there, and if they will never be."""
        answered = self.cost.done() and not self.cost.cancelled() and self.cost.exception() is None
        return self.cost.result() if answered else None

    def start(self, batch_size: int) -> None:
        """Note that a batch of `batch_size` texts begins to compute for the request."""
        self._started = self._started or time.perf_counter()
        self._largest_batch = max(self._largest_batch, batch_size)

    def fill(self, position: int, vectors: np.ndarray, from_cache: bool = False) -> None:
        """Set the vectors of a text; the last text resolves `cost`."""
        rows = self._rows[position]
        self.vectors[rows.start : rows.stop] = vectors
        self._cache_hits += from_cache
        self._missing -= 1
        if self._missing:
            return
        now = time.perf_counter()
        started = self._started or now
        queue_ms = (started - self._arrived) * 1000 if self._started else 0.0
        self.settle(Cost(queue_ms, (now - started) * 1000, self._largest_batch, self._cache_hits))

    def settle(self, outcome: Cost | Exception) -> None:
        """Make `cost` return or raise the outcome, unless it has one already."""

        def settle() -> None:
            if self.cost.done():  # cancelled, or failed by another batch
                return
            if isinstance(outcome, Cost):
                self.cost.set_result(outcome)
            else:
                self.cost.set_exception(outcome)

        # The loop is closed when a server stops while a batch computes: nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            if threading.get_ident() == self._loop_thread:  # admitted, and all of it was in the cache
                settle()
            else:
                self._loop.call_soon_threadsafe(settle)
