"""A request on its way through the batches, and its jobs, one for each text to compute."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from batching.admission import Claim
from engine.contract import DIMENSIONS, Ranges, TokenIds, vector_bounds


class Cost(NamedTuple):
    """What a request took, times in milliseconds."""

    queue_ms: float  # from its arrival to the start of its first batch; 0 when all came from the cache
    compute_ms: float  # from there to its last vector
    batch_size: int  # texts in the largest batch that computed for it, including those of other requests
    cache_hits: int


@dataclass(eq=False, slots=True)
class Job:
    """A text to compute, for every request that asks for it before its vectors arrive."""

    token_ids: TokenIds
    ranges: Sequence[tuple[int, int]] | None = None  # of tokens, each with a vector; None for one vector of all
    key: bytes | None = None  # in the cache; None when the job is neither shared nor cached
    owners: dict["Request", list[int]] = field(default_factory=dict)  # with the text's positions in each request
    turn: float = 0.0  # in tokens of the scheduler's clock
    order: int | None = None  # how many jobs were queued before; None until it is queued
    started: bool = False


Batch = list[Job]
"""The jobs of one forward pass, shortest text first."""


def batch_ranges(batch: Batch) -> Ranges | None:
    """Return the ranges of each text for `Engine.launch`; None when every text has a single vector."""
    if all(job.ranges is None for job in batch):
        return None
    return [[(0, len(job.token_ids))] if job.ranges is None else job.ranges for job in batch]


class Request:
    """The vectors of one request, filled text by text as batches come back, by one thread at a time."""

    def __init__(
        self,
        token_ids: Sequence[TokenIds],
        ranges: Ranges | None = None,
        afresh: bool = False,
        claim: Claim | None = None,
    ) -> None:
        """Make room for a vector for each text, or with `ranges` for each range. Call this on the event loop.

        Texts to compute `afresh` are not looked up, shared or cached, nor refused as busy. `claim` is the request's
        earlier claim.
        """
        self.token_ids = token_ids
        self.ranges = ranges
        self.afresh = afresh
        self.claim = claim or Claim()
        self._bounds = vector_bounds(len(token_ids), ranges)
        self.vectors = np.empty((self._bounds[-1], DIMENSIONS), dtype=np.float32)
        self.jobs: list[Job] = []
        self.loop = asyncio.get_running_loop()
        self.outcome: Cost | Exception | None = None
        """What the request took, once all texts are filled, or the error of a batch; `wake` tells `answer`."""
        self.withdrawn = False
        """Whether the request was cancelled or failed, so nothing more is computed for it."""
        self._waiter: asyncio.Future[None] | None = None  # made and resolved on the loop
        self._missing = len(token_ids)
        self._cache_hits = 0
        self._largest_batch = 0
        self._arrived = time.perf_counter()
        self._started: float | None = None

    async def answer(self) -> Cost:
        """Return what the request took, once all texts are filled; raises the error of a batch of the request."""
        while self.outcome is None:
            self._waiter = self.loop.create_future()
            await self._waiter
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome

    def start(self, batch_size: int) -> None:
        """Note that a batch of `batch_size` texts begins to compute for the request."""
        self._started = self._started or time.perf_counter()
        self._largest_batch = max(self._largest_batch, batch_size)

    def fill(self, positions: Sequence[int], vectors: Sequence[np.ndarray], from_cache: bool = False) -> Cost | None:
        """Set the vectors of the texts at these positions; return what the request took if they were the last."""
        bounds = self._bounds
        if len(positions) == 1:
            self.vectors[bounds[positions[0]] : bounds[positions[0] + 1]] = vectors[0]
        else:  # all rows at once: a request may have a text thousands of times, and others wait for the queue's lock
            rows = [row for position in positions for row in range(bounds[position], bounds[position + 1])]
            self.vectors[rows] = np.concatenate(vectors)
        self._cache_hits += from_cache * len(positions)
        self._missing -= len(positions)
        if self._missing:
            return None
        now = time.perf_counter()
        started = self._started or now
        queue_ms = (started - self._arrived) * 1000 if self._started else 0.0
        return Cost(queue_ms, (now - started) * 1000, self._largest_batch, self._cache_hits)

    def wake(self) -> None:
        """Let `answer` look at the outcome. Call this on the request's event loop."""
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)


def wake(requests: Iterable[Request]) -> None:
    """Wake the requests that have an outcome, from any thread, by one call to each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Request]] = {}
    for request in requests:
        if request.outcome is not None:
            by_loop.setdefault(request.loop, []).append(request)
    for loop, its_requests in by_loop.items():
        # The loop is closed when a server stops while a batch computes: nobody is left to tell.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_wake_all, its_requests)


def _wake_all(requests: Iterable[Request]) -> None:
    for request in requests:
        request.wake()
