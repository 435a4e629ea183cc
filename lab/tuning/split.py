"""Three parts of the rows: to train on, to choose a checkpoint by, and held out to measure by.

Rows that share a text, but for case and spaces, belong together and are kept in one part.
"""

import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from lab.tuning.data import LABELS, PAIRS, SCORES, Data, Example
from lab.tuning.recipe import TuningError

LEAST_ROWS = 200
"""Fewer rows cannot show whether training helped."""
HELD_OUT, CHOOSING = 0.1, 0.05
LEAST_HELD_OUT, MOST_HELD_OUT = 50, 2_000
LEAKS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Parts:
    """The examples of each part, and notes on the split, in sentences."""

    train: list[Example]
    choosing: list[Example]
    held_out: list[Example]
    notes: list[str]


def normalised(text: str) -> str:
    """Return the text as it is compared with others: without case, and without spaces at the ends or doubled."""
    return " ".join(text.casefold().split())


def texts_of(examples: Iterable[Example]) -> set[str]:
    """Return the normalised texts of the examples."""
    return {normalised(text) for example in examples for text in example.texts}


def split(data: Data, held_out: Data | None, seed: int, drop_shared: bool = False) -> Parts:
    """Return the parts; the held-out part is `held_out` where that is given.

    Rows of the data that share a text with `held_out` are left out with `drop_shared`. Raises TuningError where they
    are there without it, there are too few rows, they cannot be split, or the rows of a part do not differ.
    """
    notes = [each.note for each in (data, held_out) if each and each.note]
    examples = data.examples if held_out is None else _without_shared(data, held_out, drop_shared)
    count = len(examples)
    if held_out and count < len(data.examples):
        dropped, name = _rows(len(data.examples) - count), os.path.basename(held_out.path)
        notes.append(f"{dropped} share a text with {name}, and were left out.")
    if count < LEAST_ROWS:
        raise TuningError(
            f"{data.path}: {_rows(count)}; give {LEAST_ROWS} or more, as fewer cannot show whether training helped"
        )
    groups = _groups(examples)
    largest = max(map(len, groups))
    if shared := count - sum(len(group) == 1 for group in groups):
        notes.append(f"{_rows(shared)} share a text with another row; such rows are kept in one part.")
    random.Random(seed).shuffle(groups)
    wanted = 0 if held_out else int(np.clip(HELD_OUT * count, LEAST_HELD_OUT, MOST_HELD_OUT))
    kept, groups = _take(groups, wanted)
    chosen, groups = _take(groups, int(np.clip(CHOOSING * count, LEAST_HELD_OUT / 2, MOST_HELD_OUT / 2)))
    if len(kept) < wanted * 0.8 or not chosen or not groups:
        raise TuningError(
            f"{data.path}: {largest:,} of {_rows(count)} hang together by texts that they share, so no part of "
            f"{_rows(wanted or LEAST_HELD_OUT)} can be held out; give more rows, or rows of your own with HELD_OUT=file"
        )
    train, _ = _take(groups, count)
    parts = Parts(train, chosen, held_out.examples if held_out else kept, notes)
    parts = _without_strange_labels(parts) if data.kind is LABELS else parts
    _check_differing(data, parts)
    return parts


def _groups(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the examples in groups: two that share a text, also by way of others, are in one group."""
    texts: dict[str, int] = {}
    edges = [(i, texts.setdefault(normalised(text), len(texts))) for i, e in enumerate(examples) for text in e.texts]
    rows, columns = np.array(edges).T
    graph = coo_matrix((np.ones(len(edges)), (rows, len(examples) + columns)), shape=2 * (len(examples) + len(texts),))
    _, of = connected_components(graph, directed=False)
    groups = defaultdict(list)
    for example, group in zip(examples, of[: len(examples)].tolist(), strict=True):
        groups[group].append(example)
    return list(groups.values())


def _take(groups: Sequence[list[Example]], count: int) -> tuple[list[Example], list[list[Example]]]:
    """Return at most `count` examples of whole groups, in their order, and the groups that did not fit."""
    taken, others = list[Example](), list[list[Example]]()
    for group in groups:
        if len(taken) + len(group) <= count:
            taken += group
        else:
            others.append(group)
    return sorted(taken, key=lambda example: example.number), others


def _without_shared(data: Data, held_out: Data, drop_shared: bool) -> list[Example]:
    """Return the data's examples that share no text with the held-out ones. Raises TuningError; see `split`."""
    if held_out.kind is not data.kind:
        raise TuningError(
            f"{held_out.path}: it has {held_out.kind.name} and {data.path} has {data.kind.name}; give the same columns"
        )
    if len(held_out.examples) < LEAST_HELD_OUT:
        raise TuningError(f"{held_out.path}: {_rows(len(held_out.examples))}; give {LEAST_HELD_OUT} or more")
    if drop_shared:
        held_out_texts = texts_of(held_out.examples)
        return [example for example in data.examples if held_out_texts.isdisjoint(texts_of([example]))]
    lines = {normalised(text): example.number for example in data.examples for text in example.texts}
    leaks = [
        f"{text[:60]!r} (row {example.number}, and row {lines[normalised(text)]} there)"
        for example in held_out.examples
        for text in example.texts
        if normalised(text) in lines
    ]
    if leaks:
        raise TuningError(
            f"{held_out.path}: {len(leaks):,} of its texts are in {data.path} too, so it would measure what was learnt "
            f"by heart: {'; '.join(leaks[:LEAKS_SHOWN])}; leave their rows out of {data.path} with "
            "OPTIONS=--drop-shared, or leave HELD_OUT out and a part is split off by text"
        )
    return data.examples


def _check_differing(data: Data, parts: Parts) -> None:
    """Raise TuningError where a part has nothing to learn from, or to measure by."""
    remedy = "give more rows, or rows that differ more"
    for use, part in {"train on": parts.train, "choose by": parts.choosing, "measure by": parts.held_out}.items():
        if not part:
            raise TuningError(f"{data.path}: no rows to {use} have a label that training has; {remedy}")
        if data.kind is SCORES and len({example.score for example in part}) == 1:
            raise TuningError(f"{data.path}: score: all {_rows(len(part))} to {use} have {part[0].score}; {remedy}")
    if data.kind is PAIRS:
        for name, texts in zip(PAIRS.columns, zip(*(e.texts for e in parts.train), strict=True), strict=True):
            if len(set(map(normalised, texts))) == 1:
                raise TuningError(f"{data.path}: {name}: all rows to train on have {texts[0][:60]!r}; {remedy}")


def _without_strange_labels(parts: Parts) -> Parts:
    """Leave out the only row of a label to train on, and rows of other parts whose labels training lacks."""
    counts = Counter(example.label for example in parts.train)
    known = {label for label, count in counts.items() if count > 1}
    if len(known) < 2:
        raise TuningError(
            f"label: {len(known)} of {len(counts):,} labels have two texts or more to train on; give more"
        )
    train, choosing, held_out = (
        [example for example in part if example.label in known]
        for part in (parts.train, parts.choosing, parts.held_out)
    )
    notes = list(parts.notes)
    labels = Counter(text for text, _ in {(normalised(example.first), example.label) for example in train})
    if several := sum(count > 1 for count in labels.values()):
        notes.append(f"Texts to train on that have several labels: {several:,}.")
    if single := len(parts.train) - len(train):
        notes.append(f"{_rows(single)} are the only one of their label, and were left out.")
    if strange := len(parts.choosing) + len(parts.held_out) - len(choosing) - len(held_out):
        notes.append(f"{_rows(strange)} of the other parts have labels that no training row has, and were left out.")
    return Parts(train, choosing, held_out, notes)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
