"""The texts that wait for the device, and which of them make the next batch."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Owner = TypeVar("Owner")

# A request's turns and a batch's company of other lengths are measured in this part of a batch.
SHARE = 4


@dataclass(eq=False, slots=True)
class Job(Generic[Owner]):
    """One text to compute, for all who asked for it while it was on its way: each with the text's position there."""

    token_ids: Sequence[int]
    key: bytes | None = None
    ranges: Sequence[tuple[int, int]] | None = None
    """Of its tokens, each for a vector; None for one of all."""
    owners: list[tuple[Owner, int]] = field(default_factory=list)
    turn: int = 0
    order: int | None = None
    """When it was queued; None before."""
    started: bool = False

    def __lt__(self, other: "Job[Owner]") -> bool:
        return (self.turn, self.order or 0) < (other.turn, other.order or 0)


class Scheduler(Generic[Owner]):
    """Jobs by length class (powers of two) and turn.

    A text's turn is the number of the batch that it could be in if its request had a quarter of every batch to itself.
    Turns come in order: a text that arrives later never has an earlier one, so none is passed over for long, and the
    tail of a request of many texts stands behind the requests that come meanwhile.
    """

    def __init__(self) -> None:
        self.tokens = 0
        self._classes: dict[int, list[Job[Owner]]] = {}
        self._batches = 0
        self._added = 0

    def add(self, jobs: Iterable[Job[Owner]], budget: int) -> None:
        """Queue the texts of one request, where a batch holds `budget` tokens.

        A text that another request queued already keeps the earlier of its two turns.
        """
        ahead = 0
        hastened = set()
        for job in jobs:
            turn = self._batches + ahead * SHARE // budget
            length_class = len(job.token_ids).bit_length()
            ahead += len(job.token_ids)
            if job.order is None:
                job.turn, job.order = turn, self._added
                self._added += 1
                self.tokens += len(job.token_ids)
                heapq.heappush(self._classes.setdefault(length_class, []), job)
            elif turn < job.turn and not job.started:
                job.turn = turn
                hastened.add(length_class)
        for length_class in hastened:
            heapq.heapify(self._classes[length_class])

    def leave(self, job: Job[Owner]) -> None:
        """Count a job out that nobody waits for any more; `take` passes over it."""
        self.tokens -= len(job.token_ids)

    def take(self, budget: int) -> list[Job[Owner]]:
        """Remove and return the next batch, of at most `budget` tokens or one text; empty when nothing waits.

        It holds the text whose turn it is and others of its length class in their order. Where these make less than a
        quarter of a batch, texts of the nearest classes fill it up to that.
        """
        heads = {length_class: jobs for length_class, jobs in self._classes.items() if _skip_left(jobs)}
        self._classes = heads
        if not heads:
            return []
        anchor = min(heads, key=lambda length_class: heads[length_class][0])
        batch: list[Job[Owner]] = []
        tokens = 0
        for length_class in sorted(heads, key=lambda other: abs(other - anchor)):
            room = budget if length_class == anchor else budget // SHARE
            jobs = heads[length_class]
            while _skip_left(jobs) and (not batch or tokens + len(jobs[0].token_ids) <= room):
                job = heapq.heappop(jobs)
                job.started = True
                batch.append(job)
                tokens += len(job.token_ids)
        self.tokens -= tokens
        self._batches += 1
        return batch


def _skip_left(jobs: list[Job[Owner]]) -> bool:
    """Drop the first jobs that nobody waits for any more; return whether any is left."""
    while jobs and not jobs[0].owners:
        heapq.heappop(jobs)
    return bool(jobs)
