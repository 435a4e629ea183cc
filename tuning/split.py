"""The rows apart: those to train on, those to choose a checkpoint by, and those held out to measure by.

Rows that share a text, but for case and spaces, belong together and are kept on one side.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from tuning.data import LABELS, PAIRS, SCORES, Data, Example, path_name
from tuning.recipe import TuningError

LEAST_ROWS = 200
"""Fewer rows cannot show whether training helped."""
HELD_OUT, CHOOSING = 0.1, 0.05
LEAST_HELD_OUT, MOST_HELD_OUT = 50, 2_000
LEAKS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Parts:
    """The examples of each part, and in sentences what was found while splitting."""

    train: list[Example]
    choosing: list[Example]
    held_out: list[Example]
    notes: list[str]


def normalised(text: str) -> str:
    """Return the text without what does not make it another one: case, and spaces at the ends or doubled."""
    return " ".join(text.casefold().split())


def split(data: Data, held_out: Data | None, seed: int, drop_shared: bool = False) -> Parts:
    """Return the parts; the held-out one is `held_out` where that is given.

    Rows of the data that share a text with `held_out` are left out with `drop_shared`. Raises TuningError where they
    are there without it, there are too few rows, they cannot be parted, or a part has nothing to tell apart.
    """
    examples, notes = data.examples, [note for note in (data.note, held_out.note if held_out else "") if note]
    if held_out is not None:
        examples = _without_shared(data, held_out, drop_shared)
        if dropped := len(data.examples) - len(examples):
            notes.append(f"{_rows(dropped)} share a text with {path_name(held_out.path)}, and were left out.")
    count = len(examples)
    if count < LEAST_ROWS:
        raise TuningError(
            f"{data.path}: {_rows(count)}; give {LEAST_ROWS} or more, as fewer cannot show whether training helped"
        )
    groups = _groups(examples)
    if shared := count - sum(len(group) == 1 for group in groups):
        notes.append(f"{_rows(shared)} share a text with another row; such rows are kept in one part.")
    random.Random(seed).shuffle(groups)
    wanted = 0 if held_out else int(np.clip(HELD_OUT * count, LEAST_HELD_OUT, MOST_HELD_OUT))
    kept, groups = _take(groups, wanted)
    chosen, groups = _take(groups, int(np.clip(CHOOSING * count, LEAST_HELD_OUT / 2, MOST_HELD_OUT / 2)))
    if len(kept) < wanted * 0.8 or not chosen or not groups:
        largest = max(map(len, _groups(examples)))
        raise TuningError(
            f"{data.path}: {largest:,} of {_rows(count)} hang together by texts that they share, so no part of "
            f"{_rows(wanted or LEAST_HELD_OUT)} can be held out; give more rows, or rows of your own with HELD_OUT=file"
        )
    train = sorted((example for group in groups for example in group), key=lambda example: example.number)
    parts = Parts(train, chosen, held_out.examples if held_out else kept, notes)
    parts = _without_strange_labels(parts) if data.kind is LABELS else parts
    _check_differing(data, parts)
    return parts


def _groups(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the examples in groups: two that share a text, also by way of others, are in one."""
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
    """Return about `count` examples of whole groups, and the other groups; a group that is too large is not taken."""
    taken: list[Example] = []
    others = []
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
        texts = {normalised(text) for example in held_out.examples for text in example.texts}
        return [e for e in data.examples if texts.isdisjoint(map(normalised, e.texts))]
    lines = {normalised(text): example.number for example in data.examples for text in example.texts}
    leaks = [
        (example.number, text, lines[normalised(text)])
        for example in held_out.examples
        for text in example.texts
        if normalised(text) in lines
    ]
    if leaks:
        shown = "; ".join(
            f"{text[:60]!r} (row {theirs}, and row {ours} there)" for theirs, text, ours in leaks[:LEAKS_SHOWN]
        )
        raise TuningError(
            f"{held_out.path}: {len(leaks):,} of its texts are in {data.path} too, so it would measure what was learnt "
            f"by heart: {shown}; leave their rows out of {data.path} with OPTIONS=--drop-shared, or leave HELD_OUT out "
            "and a part is split off by text"
        )
    return data.examples


def _check_differing(data: Data, parts: Parts) -> None:
    """Raise TuningError where a part has nothing to learn from, or to measure by."""
    remedy = "give more rows, or rows that differ more"
    for name, part in {"choose by": parts.choosing, "measure by": parts.held_out}.items():
        if not part:
            raise TuningError(f"{data.path}: no rows to {name} have a label that training has; {remedy}")
        if data.kind is SCORES and len({example.score for example in part}) == 1:
            raise TuningError(f"{data.path}: score: all {_rows(len(part))} to {name} have {part[0].score}; {remedy}")
    if data.kind is SCORES and len({example.score for example in parts.train}) == 1:
        raise TuningError(f"{data.path}: score: all rows to train on have {parts.train[0].score}; {remedy}")
    if data.kind is PAIRS:
        for name, texts in zip(PAIRS.columns, zip(*(e.texts for e in parts.train), strict=True), strict=True):
            if len(set(map(normalised, texts))) == 1:
                raise TuningError(f"{data.path}: {name}: all rows to train on have {texts[0][:60]!r}; {remedy}")


def _without_strange_labels(parts: Parts) -> Parts:
    """Leave out what cannot be learnt: held-out texts of labels, and single texts of labels, that training lacks."""
    counts: dict[str, int] = defaultdict(int)
    for example in parts.train:
        counts[example.label] += 1
    train = [example for example in parts.train if counts[example.label] > 1]
    known = {example.label for example in train}
    if len(known) < 2:
        raise TuningError(
            f"label: {len(known)} of {len(counts):,} labels have two texts or more to train on; give more"
        )
    notes = list(parts.notes)
    labels = Counter(text for text, _ in {(normalised(example.first), example.label) for example in train})
    if several := sum(count > 1 for count in labels.values()):
        notes.append(f"Texts to train on that have several labels: {several:,}.")
    if len(train) < len(parts.train):
        notes.append(f"{_rows(len(parts.train) - len(train))} are the only one of their label, and were left out.")
    known_rows = [[e for e in part if e.label in known] for part in (parts.choosing, parts.held_out)]
    if lost := len(parts.choosing) + len(parts.held_out) - sum(map(len, known_rows)):
        notes.append(f"{_rows(lost)} of the other parts have labels that no training row has, and were left out.")
    return Parts(train, known_rows[0], known_rows[1], notes)


def shared_with(examples: Iterable[Example], texts: Iterable[str]) -> int:
    """Return how many of `texts` are texts of the examples too."""
    known = {normalised(text) for example in examples for text in example.texts}
    return sum(normalised(text) in known for text in texts)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"
