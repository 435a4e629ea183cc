"""What the event loop and the engine's thread share: requests, waiting texts, results. All of it under one lock."""

import threading
from array import array
from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

from batching.errors import Busy, EngineFailed, EngineStopped
from batching.request import Request
from batching.scheduler import Job, Scheduler
from batching.stats import Stats
from batching.vector_cache import VectorCache
from engine.contract import Ranges, vector_rows

Batch = list[Job[Request]]


class Queue:
    """Requests in, batches out, vectors back. Every method may be called by any thread."""

    def __init__(self, max_waiting_tokens: int, cache_bytes: int, budget: Callable[[], int]) -> None:
        """`budget` gives the tokens that a batch may hold at that moment."""
        self._max_waiting_tokens = max_waiting_tokens
        self._budget = budget
        self._results = VectorCache(cache_bytes)
        self._waiting: Scheduler[Request] = Scheduler()
        self._in_flight: dict[bytes, Job[Request]] = {}
        self._requests: set[Request] = set()
        self._stopped: BaseException | None = None
        self._changed = threading.Condition()
        self._minute = Stats()

    def admit(self, request: Request, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> None:
        """Fill the texts that are known and queue the rest, identical ones once. A request that has left is ignored.

        Raises Busy, or EngineStopped, before anything is changed.
        """
        all_ranges = [None] * len(token_ids) if ranges is None else ranges
        keys = [_key(*one) for one in zip(token_ids, all_ranges, strict=True)]
        with self._changed:
            new: dict[bytes, Job[Request]] = {}
            known: list[tuple[int, np.ndarray]] = []
            unknown: list[tuple[int, Job[Request]]] = []
            for i, (key, ids, its_ranges) in enumerate(zip(keys, token_ids, all_ranges, strict=True)):
                if (vectors := self._results.get(key)) is not None:
                    known.append((i, vectors))
                else:
                    unknown.append((i, self._in_flight.get(key) or new.setdefault(key, Job(ids, key, its_ranges))))
            self._refuse_if_busy(sum(len(job.token_ids) for job in new.values()))
            if not self._enter(request, unknown):
                return
            if request.jobs:
                self._in_flight |= new
                self._waiting.add(request.jobs, self._budget())
                self._changed.notify()
            for i, vectors in known:
                request.hit(i, vectors)
            self._minute.count_request(len(token_ids), len(known))

    def admit_afresh(self, request: Request, token_ids: Sequence[int]) -> None:
        """Queue one text that is neither looked up, nor shared, nor kept, nor refused as too much."""
        job: Job[Request] = Job(token_ids)
        with self._changed:
            if self._enter(request, [(0, job)]):
                self._waiting.add([job], self._budget())
                self._changed.notify()

    def _enter(self, request: Request, unknown: list[tuple[int, Job[Request]]]) -> bool:
        """Make the request an owner of its jobs; return whether it is still there."""
        if self._stopped is not None:
            raise EngineStopped(self._stopped)
        if request.gone:
            return False
        self._requests.add(request)
        request.jobs = [job for _, job in unknown]
        for position, job in unknown:
            job.owners.append((request, position))
        return True

    def _refuse_if_busy(self, tokens: int) -> None:
        waiting = self._waiting.tokens
        if waiting and tokens and waiting + tokens > self._max_waiting_tokens:
            self._minute.count_refused()
            raise Busy(
                f"busy: {waiting:,} tokens are waiting and this request has {tokens:,} more, beyond the limit of "
                f"{self._max_waiting_tokens:,}; try again in a moment"
            )

    def leave(self, request: Request) -> None:
        """Take a request out, answered or not; what nobody else waits for will not be computed."""
        with self._changed:
            request.gone = True
            self._requests.discard(request)
            for job in request.jobs:
                if not job.owners:
                    continue
                job.owners = [(owner, at) for owner, at in job.owners if owner is not request]
                if not job.owners and not job.started:
                    self._waiting.leave(job)
                    self._forget(job)

    def next_batch(self, full: bool) -> Batch:
        """Return the next batch. With `full` only one that fills the budget, and at once; else wait for any.

        The wait ends with nothing when the minute's line is due.
        """
        with self._changed:
            if full and self._waiting.tokens < self._budget():
                return []
            batch = self._waiting.take(self._budget())
            if not batch and not full:
                self._changed.wait(self._minute.left_s())
                batch = self._waiting.take(self._budget())
            for job in batch:
                for request, _ in job.owners:
                    request.start(len(batch))
            return batch

    def deliver(self, batch: Batch, vectors: np.ndarray) -> None:
        """Hand out and keep the vectors of a batch, float32 [n, 768]. One that is not finite is a failure."""
        finite = np.isfinite(vectors).all(axis=1)
        with self._changed:
            for job, rows in zip(batch, vector_rows(len(batch), ranges_of(batch)), strict=True):
                its = slice(rows.start, rows.stop)
                if not finite[its].all():
                    self._fail(job, "its vector is not finite")
                    continue
                if job.key is not None:
                    self._results.put(job.key, vectors[its])
                for request, position in job.owners:
                    request.fill(position, vectors[its])
                self._forget(job)
            self._minute.count_batch(len(batch), sum(len(job.token_ids) for job in batch))

    def fail(self, job: Job[Request], cause: Exception) -> None:
        """Let the requests that wait for this text raise EngineFailed."""
        with self._changed:
            self._fail(job, f"{type(cause).__name__}: {cause}")

    def stop(self, cause: BaseException) -> None:
        """Let all requests, those waiting and those to come, raise EngineStopped."""
        with self._changed:
            self._stopped = cause
            for request in self._requests:
                request.fail(EngineStopped(cause))

    def minute_line(self) -> str | None:
        """Return what happened in the last minute, once a minute, when anything did."""
        with self._changed:
            return self._minute.line() if self._minute.left_s() == 0 else None

    def _fail(self, job: Job[Request], cause: str) -> None:
        for request, position in job.owners:
            request.fail(EngineFailed(position, cause))
        self._forget(job)

    def _forget(self, job: Job[Request]) -> None:
        job.owners = []
        if job.key is not None:
            self._in_flight.pop(job.key, None)


def ranges_of(batch: Batch) -> Ranges | None:
    """Return what each text of the batch is pooled over; None where all have one vector of all their tokens."""
    if all(job.ranges is None for job in batch):
        return None
    return [[(0, len(job.token_ids))] if job.ranges is None else job.ranges for job in batch]


def _key(token_ids: Sequence[int], ranges: Sequence[tuple[int, int]] | None) -> bytes:
    """Return what tells this text from all others: the ids themselves, 4 bytes each."""
    ids = array("I", token_ids).tobytes()
    if ranges is None:
        return ids
    # A byte before it: as long as no key without ranges.
    return b"R" + array("I", [len(token_ids), *token_ids, *chain.from_iterable(ranges)]).tobytes()
