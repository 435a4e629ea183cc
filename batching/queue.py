"""What the event loop and the engine's thread share, under one lock: requests, waiting texts, cached vectors."""

import threading
from array import array
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import chain

import numpy as np

from batching.errors import Busy, EngineFailed, EngineStopped
from batching.request import Batch, Job, Request, batch_ranges
from batching.scheduler import Scheduler
from batching.stats import Stats, Totals
from batching.vector_cache import VectorCache
from engine.contract import vector_rows


class Queue:
    """Requests in, batches out, vectors back. Every method may be called by any thread."""

    def __init__(self, max_waiting_tokens: int, cache_bytes: int, budget: Callable[[], int]) -> None:
        """`budget` returns how many tokens a batch may hold at that moment."""
        self._max_waiting_tokens = max_waiting_tokens
        self._budget = budget
        self._cache = VectorCache(cache_bytes)
        self._scheduler = Scheduler()
        self._in_flight: dict[bytes, Job] = {}  # waiting or computing, by key
        self._requests: set[Request] = set()
        self._stop_reason: str | None = None
        self._stats = Stats()
        self._changed = threading.Condition()  # its lock is re-entrant

    def admit(self, request: Request) -> None:
        """Fill the texts that are cached and queue the rest, identical texts once. Ignores a withdrawn request.

        Raises Busy or EngineStopped, and then changes nothing.
        """
        ranges = [None] * len(request.token_ids) if request.ranges is None else request.ranges
        texts = list(zip(request.token_ids, ranges, strict=True))
        keys = [_key(*text) for text in texts]
        with self._changed:
            if self._stop_reason is not None:
                raise EngineStopped(self._stop_reason)
            if request.withdrawn:
                return
            if request.afresh:
                self._enqueue(request, list(enumerate(Job(*text) for text in texts)))
                return
            new: dict[bytes, Job] = {}
            cached: list[tuple[int, np.ndarray]] = []
            jobs: list[tuple[int, Job]] = []
            for position, (key, text) in enumerate(zip(keys, texts, strict=True)):
                if (vectors := self._cache.get(key)) is not None:
                    cached.append((position, vectors))
                else:
                    jobs.append((position, self._in_flight.get(key) or new.setdefault(key, Job(*text, key))))
            self._refuse_if_busy(sum(len(job.token_ids) for job in new.values()))
            self._in_flight |= new
            self._enqueue(request, jobs)
            for position, vectors in cached:
                request.fill(position, vectors, from_cache=True)
            self._stats.count_request(len(texts), sum(map(len, request.token_ids)), len(cached))

    def _refuse_if_busy(self, tokens: int) -> None:
        waiting = self._scheduler.tokens
        if waiting and tokens and waiting + tokens > self._max_waiting_tokens:
            self._stats.count_refused()
            raise Busy(
                f"busy: {waiting:,} tokens are waiting and this request has {tokens:,} more, beyond the limit of "
                f"{self._max_waiting_tokens:,}; try again in a moment"
            )

    def _enqueue(self, request: Request, jobs: list[tuple[int, Job]]) -> None:
        """Make the request an owner of its jobs, each with the text's position, and schedule those that are new."""
        self._requests.add(request)
        request.jobs = [job for _, job in jobs]
        for position, job in jobs:
            job.owners.append((request, position))
        if jobs:
            self._scheduler.add(request.jobs, self._budget())
            self._changed.notify()

    def withdraw(self, request: Request) -> None:
        """Remove a request, answered or not; texts that no other request waits for will not be computed."""
        with self._changed:
            request.withdrawn = True
            self._requests.discard(request)
            if (cost := request.known_cost) is not None and not request.afresh:
                self._stats.count_answer(cost.queue_ms / 1000, cost.compute_ms / 1000)
            for job in request.jobs:
                if not job.owners:
                    continue
                job.owners = [(owner, position) for owner, position in job.owners if owner is not request]
                if not job.owners and not job.started:
                    self._scheduler.discard(job)
                    self._forget(job)

    def next_batch(self, full: bool) -> Batch | None:
        """Return the next batch; None once the queue is stopped.

        When nothing waits, this sleeps until something changes or the stats' line is due, and returns an empty batch.
        With `full` it never sleeps, and returns an empty batch where the waiting texts would not fill one.
        """
        with self._changed:
            if self._stop_reason is not None:
                return None
            if full and self._scheduler.tokens < self._budget():
                return []
            batch = self._scheduler.take(self._budget())
            if not batch:
                self._changed.wait(self._stats.due_in_s())
            for job in batch:
                for request, _ in job.owners:
                    request.start(len(batch))
            return batch

    def deliver(self, batch: Batch, vectors: np.ndarray) -> None:
        """Hand out and cache the vectors of a batch, float32 [n, 768]. A text whose vectors are not finite fails."""
        finite = np.isfinite(vectors).all(axis=1)
        with self._changed:
            for job, rows in zip(batch, vector_rows(len(batch), batch_ranges(batch)), strict=True):
                job_vectors = vectors[rows.start : rows.stop]
                if not finite[rows.start : rows.stop].all():
                    self.fail(job, "its vector is not finite")
                    continue
                if job.key is not None:
                    self._cache.put(job.key, job_vectors)
                for request, position in job.owners:
                    request.fill(position, job_vectors)
                self._forget(job)
            self._stats.count_batch(len(batch), sum(len(job.token_ids) for job in batch))

    def fail(self, job: Job, cause: str) -> None:
        """Make the requests that wait for this text raise EngineFailed."""
        with self._changed:
            for request, position in job.owners:
                request.settle(EngineFailed(position, cause))
            self._forget(job)

    def stop(self, reason: str) -> None:
        """Make all requests, and all that come later, raise EngineStopped with the first reason given."""
        with self._changed:
            self._stop_reason = self._stop_reason or reason
            for request in self._requests:
                request.settle(EngineStopped(self._stop_reason))
            self._changed.notify()

    def stats_line(self) -> str | None:
        """Return the line of the last minute when it is due, and start the next."""
        with self._changed:
            if self._stats.due_in_s() != 0:
                return None
            return self._stats.line()

    def count(self, truncated: int, prompted: int) -> None:
        """Count texts that were cut before they came here, and those that began with their prompt."""
        with self._changed:
            self._stats.totals.truncated += truncated
            self._stats.totals.prompted += prompted

    def totals(self) -> Totals:
        """Return the counters since the start, as they are now."""
        with self._changed:
            return deepcopy(self._stats.totals)

    def waiting_tokens(self) -> int:
        """Return the tokens of the texts that wait for their batch."""
        return self._scheduler.tokens

    def _forget(self, job: Job) -> None:
        job.owners = []
        if job.key is not None:
            self._in_flight.pop(job.key, None)


def _key(token_ids: Sequence[int], ranges: Sequence[tuple[int, int]] | None) -> bytes:
    """Return what tells a text from all others: the ids themselves, 4 bytes each."""
    if ranges is None:
        return array("I", token_ids).tobytes()
    # The byte in front gives a length that no key without ranges has.
    return b"R" + array("I", [len(token_ids), *token_ids, *chain.from_iterable(ranges)]).tobytes()
