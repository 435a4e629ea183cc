"""Which rows share a batch, so that each has others to be told from; rows that fit into no batch are left out.

A batch of labels or scores has two values or more. A batch of pairs has no text twice, as the loss takes the documents
of other rows for wrong answers.
"""

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from math import ceil

from lab.tuning.recipe import TuningError
from lab.tuning.split import normalised

Batches = list[list[int]]
# The last batches of pairs get ever smaller, with too few wrong answers to teach. This part of the first is enough.
SMALLEST = 0.25
# After this many batches that are too small, the rows left are taken to share their texts.
MOST_SMALL = 100


def deal(values: Sequence[Hashable], batch: int, rng: random.Random) -> Batches:
    """Return positions in batches of equal size but for one row, each value's rows spread evenly over all.

    A batch has at most `batch` rows (or 3, of an odd number of rows in twos), and two values or more: rows of the most
    frequent value are left out where the others are too few for that. Raises TuningError where there are no others.
    """
    by_value = defaultdict(list)
    for i in rng.sample(range(len(values)), len(values)):
        by_value[values[i]].append(i)
    largest, *others = sorted(by_value.values(), key=len, reverse=True)
    if not others:
        raise TuningError("all rows to train on have the same label or score; give rows that differ")
    rest = [i for rows in others for i in rows]
    dealt = largest[: len(rest) * (batch - 1)] + rest
    count = min(ceil(len(dealt) / batch), len(dealt) // 2)
    return rng.sample([dealt[i::count] for i in range(count)], count)


def keep_apart(rows: Sequence[Sequence[str]], batch: int, rng: random.Random) -> Batches:
    """Return positions of rows, each a query, its document and hard negatives, in batches of at most `batch` rows.

    No query or document of a row is a text of another row in the batch, but for case and spaces. Rows whose texts too
    many share are left out. Raises TuningError where none are left.
    """
    texts = [list(map(normalised, row)) for row in rows]
    waiting, batches, small = deque(rng.sample(range(len(rows)), len(rows))), Batches(), 0
    while waiting and small < MOST_SMALL:
        taken = _take_apart(texts, waiting, batch)
        if len(taken) >= max(2, SMALLEST * len(batches[0]) if batches else 0):
            batches.append(taken)
        else:
            small += 1
            waiting.extend(taken[1:])  # the first row may be the one that clashes with all others
    if not batches:
        raise TuningError(
            "the rows to train on share their texts, so that no query has a wrong answer; give more of others"
        )
    return rng.sample(batches, len(batches))


def _take_apart(texts: Sequence[Sequence[str]], waiting: deque[int], batch: int) -> list[int]:
    """Take the next batch from the waiting rows, in their order."""
    taken, skipped = list[int](), list[int]()
    right, every = set[str](), set[str]()
    while waiting and len(taken) < batch:
        row = texts[i := waiting.popleft()]
        if every.isdisjoint(row[:2]) and right.isdisjoint(row[2:]):
            taken.append(i)
            right.update(row[:2])
            every.update(row)
        else:
            skipped.append(i)
    waiting.extendleft(reversed(skipped))
    return taken
