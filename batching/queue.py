"""What the event loop and the engine's thread share under a lock: requests, waiting texts, cached vectors."""

import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain, pairwise

import numpy as np

from batching.admission import Admission, Claim
from batching.errors import Busy, EngineFailed, EngineStopped
from batching.request import Batch, Cost, Job, Request, batch_ranges, wake
from batching.scheduler import Scheduler
from batching.stats import Stats, Totals
from batching.vector_cache import VectorCache
from engine.contract import TokenIds, as_array, vector_bounds

# The lock is released after this many texts, which take some milliseconds.
TEXTS_LOCKED = 512

Text = tuple[TokenIds, Sequence[tuple[int, int]] | None]
"""The token ids of a text, and the ranges of them that each get a vector."""


class Queue:
    """Requests in, batches out, vectors back. Every method may be called by any thread."""

    def __init__(self, max_waiting_tokens: int, cache_bytes: int, budget: Callable[[], int]) -> None:
        """`budget` returns how many tokens a batch may hold at the moment."""
        self._budget = budget
        self._admission = Admission(max_waiting_tokens, budget())
        self._cache = VectorCache(cache_bytes)
        self._scheduler = Scheduler()
        self._in_flight: dict[bytes, Job] = {}  # waiting or computing, by key
        self._requests: set[Request] = set()
        self._stop_reason: str | None = None
        self._stats = Stats()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    @contextmanager
    def claim(self, tokens: int) -> Iterator[Claim]:
        """Claim about `tokens` for a request whose tokens are not counted yet. Raises Busy, EngineStopped.

        Small requests claim theirs on admission: until then they cost next to nothing.
        """
        claim = Claim()
        self._raise_if_stopped()
        if tokens > self._admission.small_tokens:
            with self._lock:
                self._claim(claim, tokens)
        try:
            yield claim
        finally:
            if claim.tokens:  # the request was not admitted, as an answered or withdrawn one has nothing left
                with self._lock:
                    self._admission.release(claim)

    def cached(self, token_ids: TokenIds) -> np.ndarray | None:
        """Return float32 [1, 768] of a request of one text that is cached, and count the request; None if it is not.

        `admit` would do the same in three times the time. Raises EngineStopped, unless nothing is cached.
        """
        if not self._cache:
            return None
        with self._lock:
            self._raise_if_stopped()
            if (vectors := self._cache.get(_key(token_ids, None))) is not None:
                self._stats.count_request(1, len(token_ids))
                self._stats.count_answer(0.0, 0.0)
                self._stats.totals.cache_hits += 1
            return vectors

    def admit(self, request: Request) -> None:
        """Fill the texts that are cached and queue the rest, identical texts once. Ignores a withdrawn request.

        Raises Busy or EngineStopped. Others can use the queue after every TEXTS_LOCKED texts of a large request.
        """
        texts: list[Text] = [(ids, None) for ids in request.token_ids]
        if request.ranges is not None:
            texts = list(zip(request.token_ids, request.ranges, strict=True))
        keys = [None if request.afresh else _key(*text) for text in texts]
        tokens = sum(map(len, request.token_ids))
        queued = 0
        for start in range(0, len(keys), TEXTS_LOCKED):
            end = start + TEXTS_LOCKED
            with self._lock:
                self._raise_if_stopped()
                if request.withdrawn:
                    return
                cached, wanted, new = self._look_up(keys[start:end], texts, start)
                if start == 0:
                    if not request.afresh:
                        new_ids = [job.token_ids for job in new.values()]
                        self._claim(request.claim, sum(map(len, [*new_ids, *request.token_ids[end:]])))
                        self._stats.count_request(len(texts), tokens)
                    self._requests.add(request)
                self._in_flight |= new
                queued = self._enqueue(request, wanted, queued)
                if cached:
                    self._settle(request, request.fill(list(cached), list(cached.values()), from_cache=True))
                    self._stats.totals.cache_hits += len(cached)

    def _look_up(
        self, keys: Sequence[bytes | None], texts: Sequence[Text], start: int
    ) -> tuple[dict[int, np.ndarray], dict[Job, list[int]], dict[bytes, Job]]:
        """Return cached vectors by position, the positions of other texts by their jobs, and the new jobs by key.

        `keys` are those of the texts from position `start` on.
        """
        new: dict[bytes, Job] = {}
        cached: dict[int, np.ndarray] = {}
        wanted: dict[Job, list[int]] = {}
        for position, key in enumerate(keys, start):
            if key is None:
                wanted[Job(*texts[position])] = [position]
            elif (vectors := self._cache.get(key)) is not None:
                cached[position] = vectors
            else:
                job = self._in_flight.get(key) or new.get(key)
                if job is None:
                    job = new[key] = Job(*texts[position], key)
                wanted.setdefault(job, []).append(position)
        return cached, wanted, new

    def _claim(self, claim: Claim, tokens: int) -> None:
        try:
            self._admission.claim(claim, tokens)
        except Busy:
            self._stats.count_refused()
            raise

    def _raise_if_stopped(self) -> None:
        if self._stop_reason is not None:
            raise EngineStopped(self._stop_reason)

    def _enqueue(self, request: Request, jobs: dict[Job, list[int]], queued: int) -> int:
        """Make the request an owner of its jobs, with the positions of each job's text, and schedule new jobs.

        `queued` is what the scheduler counted for the request's earlier texts; returns what it counts with these.
        """
        if jobs:
            for job, positions in jobs.items():
                job.owners.setdefault(request, []).extend(positions)
            request.jobs += jobs
            queued = self._scheduler.add(jobs, queued)
            self._changed.notify()
        return queued

    def _settle(self, request: Request, outcome: Cost | Exception | None) -> None:
        """Give the request this outcome, if it is one and the first. Wake the request without the lock."""
        if outcome is None or request.outcome is not None:
            return
        request.outcome = outcome
        self._requests.discard(request)
        self._admission.release(request.claim)
        if isinstance(outcome, Cost) and not request.afresh:
            self._stats.count_answer(outcome.queue_ms / 1000, outcome.compute_ms / 1000)

    def withdraw(self, request: Request) -> None:
        """Remove a request, answered or not. Texts that no other request waits for will not be computed."""
        if isinstance(request.outcome, Cost):  # nothing of it is left
            return
        with self._lock:
            request.withdrawn = True
            self._requests.discard(request)
            self._admission.release(request.claim)
            for job in request.jobs:
                if job.owners.pop(request, None) and not job.owners and not job.started:
                    self._scheduler.discard(job)
                    self._forget(job)

    def next_batch(self, full: bool) -> Batch | None:
        """Return the next batch; None once the queue is stopped.

        When nothing waits, this sleeps until something changes or the stats' line is due, and returns an empty batch.
        With `full` it never sleeps, and returns an empty batch unless the waiting texts fill a batch.
        """
        with self._lock:
            if self._stop_reason is not None:
                return None
            if full and self._scheduler.tokens < self._budget():
                return []
            batch = self._scheduler.take(self._budget(), len(self._requests))
            if not batch:
                self._changed.wait(self._stats.due_in_s())
            for job in batch:
                for request in job.owners:
                    request.start(len(batch))
            return batch

    def deliver(self, batch: Batch, vectors: np.ndarray) -> None:
        """Distribute and cache the vectors of a batch, float32 [n, 768]. A text whose vectors are not finite fails."""
        finite = np.isfinite(vectors).all(axis=1).tolist()
        with self._lock:
            waiting = dict.fromkeys(request for job in batch for request in job.owners)
            for job, (start, end) in zip(batch, pairwise(vector_bounds(len(batch), batch_ranges(batch))), strict=True):
                if not all(finite[start:end]):
                    self._fail(job, "its vector is not finite")
                    continue
                job_vectors = vectors[start:end]
                if job.key is not None:
                    self._cache.put(job.key, job_vectors)
                for request, positions in job.owners.items():
                    self._settle(request, request.fill(positions, [job_vectors] * len(positions)))
                self._forget(job)
            self._stats.count_batch(len(batch), sum(len(job.token_ids) for job in batch))
        wake(waiting)

    def fail(self, job: Job, cause: str) -> None:
        """Make the requests that wait for this text raise EngineFailed."""
        with self._lock:
            waiting = list(job.owners)
            self._fail(job, cause)
        wake(waiting)

    def _fail(self, job: Job, cause: str) -> None:
        for request, positions in job.owners.items():
            self._settle(request, EngineFailed(positions[0], cause))
        self._forget(job)

    def stop(self, reason: str) -> None:
        """Make all present and later requests raise EngineStopped with the first reason given."""
        with self._lock:
            self._stop_reason = self._stop_reason or reason
            waiting = list(self._requests)
            for request in waiting:
                self._settle(request, EngineStopped(self._stop_reason))
            self._changed.notify()
        wake(waiting)

    def stats_line(self) -> str | None:
        """Return the log line of the last minute if it is due, and start the next minute."""
        with self._lock:
            if self._stats.due_in_s() != 0:
                return None
            return self._stats.line()

    def count(self, truncated: int, prompted: int) -> None:
        """Count texts that were cut to the limit, and texts that began with their prompt."""
        with self._lock:
            self._stats.totals.truncated += truncated
            self._stats.totals.prompted += prompted

    def totals(self) -> Totals:
        """Return the counters since the start, as they are now."""
        with self._lock:
            return deepcopy(self._stats.totals)

    def waiting_tokens(self) -> int:
        """Return the tokens of the texts that wait for their batch."""
        return self._scheduler.tokens

    def _forget(self, job: Job) -> None:
        job.owners = {}
        if job.key is not None:
            self._in_flight.pop(job.key, None)


def _key(token_ids: TokenIds, ranges: Sequence[tuple[int, int]] | None) -> bytes:
    """Return a key that tells a text from all others: its ids, 4 bytes each, and its ranges."""
    ids = as_array(token_ids).tobytes()
    if ranges is None:
        return ids
    # The byte in front gives a length that no key without ranges has.
    return b"R" + array("I", [len(token_ids), *chain.from_iterable(ranges)]).tobytes() + ids
