"""Which rows are in a batch together, so that each has others to be told from; those that fit into none are left out.

Of labels and scores a batch has two values or more. Of pairs it has no text twice, as the loss takes the documents of
other rows for wrong answers.
"""

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import ceil

from tuning.recipe import TuningError
from tuning.split import normalised

Batches = list[list[int]]
# Pairs are left over in ever smaller batches, which have too few wrong answers to teach; this part of the first counts.
SMALLEST = 0.25
# After so many batches that are too small, what waits is taken to share its texts.
MOST_SMALL = 100


def deal(values: Sequence[Hashable], batch: int, rng: random.Random) -> Batches:
    """Return positions in batches of equal size but for one row, each value's rows spread evenly over all.

    A batch has `batch` rows or fewer (or 3, of an odd number of rows in twos), and two values or more: rows of the most
    frequent one are left out where the others are too few for that. Raises TuningError where there are no others.
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


@dataclass(frozen=True, slots=True)
class Texts:
    """The texts of a pair: query and document, which no other row of the batch may have, and hard negatives."""

    right: frozenset[str]
    wrong: frozenset[str] = frozenset()

    @staticmethod
    def of(pair: Sequence[str], negatives: Sequence[str] = ()) -> "Texts":
        """Return them without what does not make a text another one."""
        return Texts(frozenset(map(normalised, pair)), frozenset(map(normalised, negatives)))


def keep_apart(rows: Sequence[Texts], batch: int, rng: random.Random) -> Batches:
    """Return positions in batches of at most `batch` rows, in which no row's right text is another row's text.

    Rows whose texts too many share are left out. Raises TuningError where none are left.
    """
    waiting, batches, small = deque(rng.sample(range(len(rows)), len(rows))), Batches(), 0
    while waiting and small < MOST_SMALL:
        taken = _take_apart(rows, waiting, batch)
        if len(taken) >= max(2, SMALLEST * len(batches[0]) if batches else 0):
            batches.append(taken)
        else:
            small += 1
            waiting.extend(taken[1:])  # as it may be the first that is at odds with all that wait
    if not batches:
        raise TuningError(
            "the rows to train on share their texts, so that no query has a wrong answer; give more of others"
        )
    return rng.sample(batches, len(batches))


def _take_apart(rows: Sequence[Texts], waiting: deque[int], batch: int) -> list[int]:
    """Take the next batch from those that wait, in their order."""
    taken, skipped = list[int](), list[int]()
    right, every = set[str](), set[str]()
    while waiting and len(taken) < batch:
        row = rows[i := waiting.popleft()]
        if row.right.isdisjoint(every) and row.wrong.isdisjoint(right):
            taken.append(i)
            right |= row.right
            every |= row.right | row.wrong
        else:
            skipped.append(i)
    waiting.extendleft(reversed(skipped))
    return taken
