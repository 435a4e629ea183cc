"""Every batch can teach, whatever the labels, scores or shared texts, and no row is lost without being counted."""

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.tuning.batches import deal, keep_apart
from lab.tuning.recipe import TuningError

COUNTS = st.lists(st.integers(1, 60), min_size=2, max_size=90) | st.builds(
    lambda rare, common: [*rare, common], st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 4_000)
)


@given(counts=COUNTS, batch=st.integers(2, 160), seed=st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_every_batch_has_two_labels_and_every_label_is_in_one(counts: list[int], batch: int, seed: int) -> None:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    batches = deal(labels, batch, random.Random(seed))
    sizes = [len(each) for each in batches]
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 2 and max(sizes) <= max(batch, 3)
    assert all(len({labels[i] for i in each}) > 1 for each in batches)
    dealt = Counter(i for each in batches for i in each)
    assert set(dealt.values()) == {1}
    left_out = Counter(labels[i] for i in set(range(len(labels))) - dealt.keys())
    largest, others = max(counts), sum(counts) - max(counts)
    assert sum(left_out.values()) == max(0, largest - others * (batch - 1))  # no more than must be
    assert all(counts[label] == largest and left_out[label] < largest for label in left_out)
    for label, count in enumerate(counts):  # evenly, whatever is left out
        shares = [sum(labels[i] == label for i in each) for each in batches]
        assert max(shares) - min(shares) <= 1, (label, count)


def test_one_label_with_three_of_five_rows_leaves_none_out() -> None:
    labels = [0] * 3_000 + [1 + i % 76 for i in range(2_000)]
    batches = deal(labels, 128, random.Random(0))
    assert len(batches) == 40 and sum(map(len, batches)) == 5_000
    assert all(74 <= sum(labels[i] == 0 for i in each) <= 76 for each in batches)
    assert deal(labels, 128, random.Random(0)) == batches != deal(labels, 128, random.Random(1))


def test_equal_labels_have_no_batches() -> None:
    with pytest.raises(TuningError, match="all rows to train on have the same label or score; give rows that differ"):
        deal(["x"] * 300, 128, random.Random(0))


@given(
    texts=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 400), st.integers(0, 400)), min_size=1, max_size=300),
    batch=st.integers(2, 64),
    hub=st.sampled_from([0.0, 0.6, 0.99]),
)
@settings(max_examples=100, deadline=None)
def test_no_right_text_is_in_a_batch_twice(texts: list[tuple[int, int, int]], batch: int, hub: float) -> None:
    """Queries, documents and hard negatives at random, and a part of the rows with one query."""
    rows = [
        ("Hub " if i < hub * len(texts) else f"query {a}", f"document  {b}", *[f"document {c}"] * (b != c))
        for i, (a, b, c) in enumerate(texts)
    ]
    try:
        batches = keep_apart(rows, batch, random.Random(0))
    except TuningError:  # which must be so
        assert not any(fits(a, b) for i, a in enumerate(rows) for b in rows[:i])
        return
    positions = [i for each in batches for i in each]
    assert len(set(positions)) == len(positions)
    sizes = [len(each) for each in batches]
    assert min(sizes) >= 2 and max(sizes) <= batch and min(sizes) >= max(sizes) / 4
    for each in batches:
        assert all(fits(rows[i], rows[j]) for i in each for j in each if i < j)


def fits(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether neither row's query or document is a text of the other."""
    ours, theirs = ([" ".join(text.lower().split()) for text in row] for row in (a, b))
    return set(ours[:2]).isdisjoint(theirs) and set(theirs[:2]).isdisjoint(ours)


def test_rows_apart_fill_their_batches_and_the_few_last_ones_are_left_out() -> None:
    rows = [(f"q{i}", f"d{i}") for i in range(1_000)]
    assert sorted(len(each) for each in keep_apart(rows, 128, random.Random(0))) == [104, *[128] * 7]
    assert sorted(len(each) for each in keep_apart(rows[:785], 128, random.Random(0))) == [128] * 6
    assert [len(each) for each in keep_apart(rows[:20], 128, random.Random(0))] == [20]
    shared = [("the query", f"d{i}") for i in range(600)]
    assert len(keep_apart([*shared, *rows[:500]], 128, random.Random(0))) == 4
    against_all, others = ("q", "N/A"), [(f"q{i}", f"d{i}", "N/A") for i in range(256)]
    for seed in range(20):  # wherever it comes
        batches = keep_apart([against_all, *others], 128, random.Random(seed))
        assert sorted(map(len, batches)) == [128, 128]
    with pytest.raises(TuningError, match="the rows to train on share their texts, so that no query has"):
        keep_apart(shared, 128, random.Random(0))
