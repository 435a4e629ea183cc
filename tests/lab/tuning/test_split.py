"""No text on two sides, whatever the rows share."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lab.tuning.data import LABELS, PAIRS, SCORES, Data, Example
from lab.tuning.data import read as read_data
from lab.tuning.recipe import TuningError
from lab.tuning.split import normalised, split, texts_of
from tests.lab.tuning.conftest import Rows, write_rows


def pairs_of(texts: list[tuple[str, str]]) -> Data:
    return Data("rows.jsonl", PAIRS, [Example(i, a, b) for i, (a, b) in enumerate(texts, 1)])


@pytest.mark.parametrize("seed", range(5))
def test_no_text_is_in_two_parts(seed: int) -> None:
    """Rows share queries and documents at random, in other case and with other spaces."""
    rng = random.Random(seed)
    spellings: list[Callable[[str], str]] = [str, str.upper, lambda text: f"  {text.replace(' ', '  ')} "]
    texts = [
        (f"query {rng.randrange(700)}", rng.choice(spellings)(f"some document {rng.randrange(700)}"))
        for _ in range(600)
    ]
    parts = split(pairs_of(texts), None, seed)
    sides = [
        {normalised(text) for example in part for text in example.texts}
        for part in (parts.train, parts.choosing, parts.held_out)
    ]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert sum(map(len, (parts.train, parts.choosing, parts.held_out))) == 600
    assert len(parts.held_out) >= 48 and "share a text with another row" in parts.notes[0]
    assert split(pairs_of(texts), None, seed) == parts != split(pairs_of(texts), None, seed + 1)


def test_rows_without_shared_texts_need_no_note() -> None:
    assert split(pairs_of([(f"q{i}", f"d{i}") for i in range(400)]), None, 0).notes == []


def test_one_row_is_too_few() -> None:
    with pytest.raises(
        TuningError, match=r"rows.jsonl: 1 row; give 200 or more, as fewer cannot show whether training"
    ):
        split(pairs_of([("a", "b")]), None, 0)


def test_rows_that_all_hang_together_cannot_be_parted() -> None:
    with pytest.raises(TuningError, match=r"300 of 300 rows hang together by texts that they share.*HELD_OUT=file"):
        split(pairs_of([(f"q{i}", "the one document") for i in range(300)]), None, 0)


def test_a_leak_into_a_given_held_out_file_is_named() -> None:
    data = pairs_of([(f"q{i}", f"d{i}") for i in range(300)])
    fresh = pairs_of([(f"h{i}", f"e{i}") for i in range(60)])
    parts = split(data, fresh, 0)
    assert parts.held_out == fresh.examples and len(parts.train) + len(parts.choosing) == 300
    leaking = pairs_of([(f"h{i}", f"e{i}") for i in range(60)] + [("new", " D7 ")])
    with pytest.raises(
        TuningError,
        match=r"1 of its texts are in rows.jsonl too, so it would measure.*' D7 ' \(row 61, and row 8 there\)",
    ):
        split(data, leaking, 0)
    labels = Data("labels.jsonl", LABELS, fresh.examples)
    with pytest.raises(TuningError, match=r"labels.jsonl: it has labels and rows.jsonl has pairs"):
        split(data, labels, 0)
    with pytest.raises(TuningError, match=r"20 rows; give 50 or more"):
        split(data, pairs_of([(f"h{i}", f"e{i}") for i in range(20)]), 0)


def test_labels_that_cannot_be_learnt_are_left_out_and_reported(tmp_path: Path) -> None:
    rows: Rows = [{"text": f"text {i}", "label": f"{i % 3}"} for i in range(300)]
    rows += [{"text": f"single {i}", "label": f"rare {i}"} for i in range(100)]
    parts = split(read_data(str(write_rows(tmp_path / "rows.jsonl", rows))), None, 0)
    assert {example.label for part in (parts.train, parts.choosing, parts.held_out) for example in part} == {
        "0",
        "1",
        "2",
    }
    assert any("are the only one of their label, and were left out" in note for note in parts.notes)
    assert any("have labels that no training row has" in note for note in parts.notes)
    with pytest.raises(TuningError, match=r"label: 0 of .* labels have two texts or more"):
        split(
            read_data(
                str(
                    write_rows(
                        tmp_path / "all.jsonl",
                        rows[300:] * 1 + [{"text": f"t{i}", "label": f"l{i}"} for i in range(200)],
                    )
                )
            ),
            None,
            0,
        )


def test_texts_of_two_labels_are_told() -> None:
    examples = [Example(i, f"text {i // 2 if i < 20 else i}", label=f"{i % 2}") for i in range(300)]
    parts = split(Data("rows.jsonl", LABELS, examples), None, 0)
    both = sum(example.number < 20 for example in parts.train) // 2
    assert f"Texts to train on that have several labels: {both}." in parts.notes


def test_texts_are_compared_without_case_and_spaces() -> None:
    assert texts_of([Example(1, " A  text", "B")]) == {"a text", "b"}


def test_rows_that_share_a_text_with_the_held_out_file_can_be_left_out() -> None:
    data = pairs_of([(f"q{i}", f"d{i}") for i in range(300)])
    held_out = pairs_of([(f"h{i}", f"e{i}") for i in range(60)] + [("new", " D7 "), ("Q9", "d12")])
    parts = split(data, held_out, 0, drop_shared=True)
    assert parts.held_out == held_out.examples and len(parts.train) + len(parts.choosing) == 297
    assert {"d7", "q9", "d12"}.isdisjoint(text for e in (*parts.train, *parts.choosing) for text in e.texts)
    assert parts.notes[0] == "3 rows share a text with rows.jsonl, and were left out."
    with pytest.raises(TuningError, match=r"rows.jsonl: 0 rows; give 200 or more"):
        split(data, data, 0, drop_shared=True)


@pytest.mark.parametrize(
    ("examples", "held_out", "problem"),
    [
        ([("the one", f"d{i}") for i in range(230)] + [("q", f"e{i}") for i in range(5)], True, "query: all rows to"),
        ([(f"q{i}", "the one") for i in range(230)] + [("q", "e")] * 5, True, "positive: all rows to train on"),
        ([(f"a{i}", f"b{i}", float(i == 7)) for i in range(300)], False, r"score: all .* by have 0.0; give"),
    ],
)  # fmt: skip
def test_parts_in_which_nothing_differs_are_named(examples: list[Any], held_out: bool, problem: str) -> None:
    kind = SCORES if len(examples[0]) == 3 else PAIRS
    data = Data("rows.jsonl", kind, [Example(i, row[0], row[1], score=(*row, 0)[2]) for i, row in enumerate(examples)])
    given = pairs_of([(f"h{i}", f"g{i}") for i in range(60)]) if held_out else None
    with pytest.raises(TuningError, match=problem):
        split(data, given, 0)


def test_a_held_out_file_of_other_labels_cannot_measure() -> None:
    data, other = (
        Data(f"{name}.jsonl", LABELS, [Example(i, f"{name} {i}", label=f"{name} {i % 3}") for i in range(300)])
        for name in ("data", "other")
    )
    with pytest.raises(TuningError, match=r"data.jsonl: no rows to measure by have a label that training has"):
        split(data, other, 0)
