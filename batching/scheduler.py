"""Which of the waiting texts make the next batch."""

import heapq
from collections.abc import Iterable

from batching.request import Batch, Job

# Texts of other lengths fill a batch up to a quarter of it.
SHARES = 4
# A longer text counts as this many tokens. With more, short texts come first so often that their batches are small: 256
# cost a mixed load a seventh of its throughput, and long texts waited three times as long.
MOST_COUNTED = 32
# How many dropped jobs may remain among the waiting ones before they are removed.
MOST_DROPPED = 1024

Entry = tuple[float, int, Job]
"""A waiting job after its turn and order, by which tuples compare without a call of Python code."""


class Scheduler:
    """The waiting jobs, by length class (powers of two) and turn.

    This is weighted fair queueing (Demers, Keshav and Shenker, SIGCOMM 1989). All requests get equal shares of the
    device, whatever each has queued. The clock is in tokens: it shows how many each request has got so far. A text's
    turn is when its request would have got all tokens up to the text's end, so a request of few tokens is in one of the
    next batches. The clock only goes forward, so no text is passed over forever.
    """

    def __init__(self) -> None:
        self.tokens = 0
        """Tokens of all waiting texts."""
        self._classes: dict[int, list[Entry]] = {}  # length class -> heap
        self._clock = 0.0
        self._added = 0
        self._dropped = 0

    def add(self, jobs: Iterable[Job], tokens_before: int = 0) -> int:
        """Queue texts of a request, whose earlier texts counted `tokens_before`; return what all count now.

        A text that another request has queued too keeps the earlier of its two turns.
        """
        reordered = set()
        for job in jobs:
            length = len(job.token_ids)
            tokens_before += min(length, MOST_COUNTED)
            turn = self._clock + tokens_before
            if job.order is None:
                job.turn, job.order = turn, self._added
                self._added += 1
                self.tokens += length
                heapq.heappush(self._classes.setdefault(length.bit_length(), []), (turn, job.order, job))
            elif turn < job.turn and not job.started:
                job.turn = turn
                reordered.add(length.bit_length())
        for length_class in reordered:
            entries = self._classes[length_class]
            entries[:] = [(job.turn, order, job) for _, order, job in entries]
            heapq.heapify(entries)
        return tokens_before

    def discard(self, job: Job) -> None:
        """Stop counting a waiting job that has lost its last owner."""
        self.tokens -= len(job.token_ids)
        self._dropped += 1
        if self._dropped > max(MOST_DROPPED, sum(map(len, self._classes.values())) // 2):
            self._dropped = 0
            for entries in self._classes.values():
                entries[:] = [entry for entry in entries if entry[2].owners]
                heapq.heapify(entries)

    def take(self, budget: int, requests: int = 1) -> Batch:
        """Remove and return the next batch, of at most `budget` tokens or one text; empty when nothing waits.

        `requests` is how many requests share the device. The batch holds the text whose turn it is and others of the
        same length class in their order. If these fill less than a quarter of it, texts of the nearest classes fill it
        up to that. It is sorted by length, as an engine computes attention for neighbours of equal length together.
        """
        classes = self._classes.items()
        self._classes = {length_class: entries for length_class, entries in classes if _drop_ownerless(entries)}
        if not self._classes:
            return []
        first = min(self._classes, key=lambda length_class: self._classes[length_class][0])
        batch: Batch = []
        tokens = 0
        for length_class in sorted(self._classes, key=lambda other: abs(other - first)):
            room = budget if length_class == first else budget // SHARES
            entries = self._classes[length_class]
            while _drop_ownerless(entries) and (not batch or tokens + len(entries[0][2].token_ids) <= room):
                job = heapq.heappop(entries)[2]
                job.started = True
                batch.append(job)
                tokens += len(job.token_ids)
        self.tokens -= tokens
        self._clock += sum(min(len(job.token_ids), MOST_COUNTED) for job in batch) / max(requests, 1)
        return sorted(batch, key=lambda job: len(job.token_ids))


def _drop_ownerless(entries: list[Entry]) -> bool:
    """Pop jobs without owners off the heap's top; return whether any job is left."""
    while entries and not entries[0][2].owners:
        heapq.heappop(entries)
    return bool(entries)
