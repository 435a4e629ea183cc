"""Which of the waiting texts make the next batch."""

import heapq
from collections.abc import Iterable

from batching.request import Batch, Job

# Parts of a batch: a request's turns count on one part of each batch, and texts of other lengths fill it up to one.
SHARES = 4


class Scheduler:
    """The jobs that wait, by length class (powers of two) and turn.

    A text's turn is the number of the batch that it could be in if its request had a quarter of every batch to itself.
    Turns only grow: no later text has an earlier turn, so no text is passed over for long, and the tail of a request of
    many texts stands behind the requests that come meanwhile.
    """

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of all waiting texts."""
        self._classes: dict[int, list[Job]] = {}  # length class -> heap
        self._batches = 0
        self._added = 0

    def add(self, jobs: Iterable[Job], budget: int) -> None:
        """Queue the texts of one request, where a batch holds `budget` tokens.

        A text that another request has queued keeps the earlier of its two turns.
        """
        tokens_before = 0
        reordered = set()
        for job in jobs:
            turn = self._batches + tokens_before * SHARES // budget
            length_class = len(job.token_ids).bit_length()
            tokens_before += len(job.token_ids)
            if job.order is None:
                job.turn, job.order = turn, self._added
                self._added += 1
                self.tokens += len(job.token_ids)
                heapq.heappush(self._classes.setdefault(length_class, []), job)
            elif turn < job.turn and not job.started:
                job.turn = turn
                reordered.add(length_class)
        for length_class in reordered:
            heapq.heapify(self._classes[length_class])

    def discard(self, job: Job) -> None:
        """Stop counting a waiting job that has lost its last owner; `take` drops it."""
        self.tokens -= len(job.token_ids)

    def take(self, budget: int) -> Batch:
        """Remove and return the next batch, of at most `budget` tokens or one text; empty when nothing waits.

        It holds the text whose turn it is and others of the same length class in their order. Where these make less
        than a quarter of a batch, texts of the nearest classes fill it up to that. The batch is sorted by length,
        because an engine computes attention for neighbours of equal length together.
        """
        self._classes = {length_class: jobs for length_class, jobs in self._classes.items() if _drop_ownerless(jobs)}
        if not self._classes:
            return []
        first = min(self._classes, key=lambda length_class: self._classes[length_class][0])
        batch: Batch = []
        tokens = 0
        for length_class in sorted(self._classes, key=lambda other: abs(other - first)):
            room = budget if length_class == first else budget // SHARES
            jobs = self._classes[length_class]
            while _drop_ownerless(jobs) and (not batch or tokens + len(jobs[0].token_ids) <= room):
                job = heapq.heappop(jobs)
                job.started = True
                batch.append(job)
                tokens += len(job.token_ids)
        self.tokens -= tokens
        self._batches += 1
        return sorted(batch, key=lambda job: len(job.token_ids))


def _drop_ownerless(jobs: list[Job]) -> bool:
    """Pop jobs without owners off the heap's top; return whether any job is left."""
    while jobs and not jobs[0].owners:
        heapq.heappop(jobs)
    return bool(jobs)
