"""Rows of three kinds from three formats, and what is said of those that cannot be used."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus.rows import CorpusError
from lab.tuning.data import LABELS, PAIRS, SCORES, Example, read
from lab.tuning.recipe import TuningError
from tasks import PROMPTS, prompt_for
from tests.lab.tuning.conftest import Rows, write_rows

PAIR_ROWS: Rows = [
    {"query": "a", "positive": "b", "negatives": ["c", "[d]"], "title": "t", "task": "question_answering"},
    {"query": "e", "positive": "f", "negatives": ["g"], "title": None, "task": None},
]
LABEL_ROWS: Rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
SCORE_ROWS: Rows = [{"a": "a", "b": "b", "score": 0.5}, {"a": "c", "b": "d", "score": 2}]


def as_csv(path: Path, rows: Rows) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow(
                {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
            )
    return path


@pytest.mark.parametrize(("rows", "kind"), [(PAIR_ROWS, PAIRS), (LABEL_ROWS, LABELS), (SCORE_ROWS, SCORES)])
def test_every_format_gives_the_same_examples(tmp_path: Path, rows: Rows, kind: Any) -> None:
    jsonl = read(str(write_rows(tmp_path / "rows.jsonl", rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    parquet, table = read(str(tmp_path / "rows.parquet")), read(str(as_csv(tmp_path / "rows.csv", rows)))
    assert jsonl.kind is parquet.kind is table.kind is kind
    texts = [(e.first, e.second, e.label, e.score, e.negatives, e.title, e.task) for e in jsonl.examples]
    for other in (parquet, table):
        assert [(e.first, e.second, e.label, e.score, e.negatives, e.title, e.task) for e in other.examples] == texts
    assert [e.number for e in jsonl.examples] == [1, 2]


def test_prompts_are_those_of_serving(tmp_path: Path) -> None:
    first, second = read(str(write_rows(tmp_path / "rows.jsonl", PAIR_ROWS))).examples
    assert first.prompted() == (PROMPTS["question_answering"] + "a", "title: t | text: b")
    assert second.prompted() == (PROMPTS["retrieval_query"] + "e", prompt_for("retrieval_document") + "f")
    assert first.negatives == ("title: none | text: c", "title: none | text: [d]")
    labelled, _ = read(str(write_rows(tmp_path / "labels.jsonl", LABEL_ROWS))).examples
    assert labelled.prompted()[0] == PROMPTS["classification"] + "a"
    scored, _ = read(str(write_rows(tmp_path / "scores.jsonl", SCORE_ROWS))).examples
    assert scored.prompted() == (PROMPTS["semantic_similarity"] + "a", PROMPTS["semantic_similarity"] + "b")


def test_negatives_may_have_titles_and_a_field_of_csv_one_text(tmp_path: Path) -> None:
    """Where only positives had titles, these would tell them apart."""
    row = {"query": "a", "positive": "b", "negatives": [{"text": "c", "title": "t"}, {"text": "d", "title": None}]}
    [example] = read(str(write_rows(tmp_path / "rows.jsonl", [row]))).examples
    assert example.negatives == ("title: t | text: c", "title: none | text: d")
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert read(str(tmp_path / "rows.parquet")).examples == [example]
    assert read(str(as_csv(tmp_path / "rows.csv", [row]))).examples[0].negatives == example.negatives
    for field, expected in (("[1] see there", ("title: none | text: [1] see there",)), ("", ())):
        path = as_csv(tmp_path / "one.csv", [{"query": "a", "positive": "b", "negatives": field}])
        assert read(str(path)).examples[0].negatives == expected


def test_compressed_files_are_read(tmp_path: Path) -> None:
    plain = read(str(write_rows(tmp_path / "rows.jsonl", PAIR_ROWS)))
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as file:
        file.write((tmp_path / "rows.jsonl").read_bytes())
    assert read(str(tmp_path / "rows.jsonl.gz")).examples == plain.examples


def test_columns_in_another_language_are_named(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "paare.jsonl", [{"frage": "a", "antwort": "b"}])
    with pytest.raises(
        TuningError, match=r"paare.jsonl: its columns are 'frage', 'antwort'; name them query, positive; or "
    ):
        read(str(path))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"query": " ", "positive": "b"}, "query: the text is empty or blank"),
        ({"query": "a", "positive": None}, "positive: it is null"),
        ({"query": "a", "positive": "b", "negatives": [3]}, "negatives: it is a number; give a string"),
        ({"query": "a", "positive": "b", "negatives": ["b"]}, "negatives: the positive is among them"),
        (
            {"query": "a", "positive": "b", "task": "clustering"},
            "task: 'clustering' is not the task of a query; use one",
        ),
        ({"query": "a", "positive": "b", "title": 1}, "title: it is a number"),
    ],
)
def test_bad_rows_are_named_with_their_line(tmp_path: Path, row: dict[str, Any], problem: str) -> None:
    first = {"query": "a", "positive": "b", "negatives": [], "title": "", "task": ""}
    path = write_rows(tmp_path / "rows.jsonl", [first, first | row])
    with pytest.raises(TuningError) as caught:
        read(str(path))
    assert f"rows.jsonl, line 2: {problem}" in str(caught.value) and "Nothing was trained" in str(caught.value)


def test_only_the_first_bad_rows_are_shown(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"a": "x", "b": "y", "score": "high"}] * 12)
    with pytest.raises(TuningError, match=r"line 5: score: it is 'high'; give a number\nand 7 more rows") as caught:
        read(str(path))
    assert "line 6" not in str(caught.value)


def test_a_label_is_a_name_or_a_number(tmp_path: Path) -> None:
    numbers = read(str(write_rows(tmp_path / "n.jsonl", [{"text": "a", "label": 0}, {"text": "b", "label": 1}])))
    assert [example.label for example in numbers.examples] == ["0", "1"]
    path = write_rows(tmp_path / "bad.jsonl", [{"text": "a", "label": None}])
    with pytest.raises(TuningError, match="label: it is null; give a name or a whole number"):
        read(str(path))


def test_equal_labels_or_scores_leave_nothing_to_tell_apart(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"text": "a", "label": "x"}] * 300)
    with pytest.raises(TuningError, match=r"rows.jsonl: label: all 300 rows have 'x'; give two labels or more"):
        read(str(path))
    path = write_rows(tmp_path / "scores.jsonl", [{"a": "a", "b": "b", "score": 1}] * 3)
    with pytest.raises(TuningError, match=r"score: all 3 rows have 1.0; give different scores"):
        read(str(path))


@pytest.mark.parametrize(("name", "content"), [("rows.txt", "a"), ("rows.jsonl", "not json"), ("rows.parquet", "x")])
def test_files_without_columns_are_refused(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(CorpusError, match=rf"{name}: (its columns cannot be read|a .txt file has no columns)"):
        read(str(path))


def test_any_line_of_a_jsonl_may_have_what_the_first_has_not(tmp_path: Path) -> None:
    rows: Rows = [{"query": "a", "positive": "b"}, {"query": "c", "positive": "d", "title": "t", "negatives": ["n"]}]
    first, second = read(str(write_rows(tmp_path / "rows.jsonl", rows))).examples
    assert (first.title, first.negatives) == (None, ())
    assert (second.title, second.negatives) == ("t", ("title: none | text: n",))
    renamed = [{"title": "a", "body": "b"}]
    [example] = read(str(write_rows(tmp_path / "r.jsonl", renamed)), {"query": "title", "positive": "body"}).examples
    assert example == Example(1, "a", "b", task="retrieval_query")


def test_columns_of_two_kinds_are_chosen_by_name(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b", "text": "c", "label": "d"}, {"query": "e", "positive": "f", "label": "g"}]
    path = str(write_rows(tmp_path / "rows.jsonl", [rows[0], rows[1] | {"text": "h"}]))
    with pytest.raises(
        TuningError, match=r"it has the columns of pairs \(query, positive\) and of labels \(text, label\)"
    ):
        read(path)
    assert read(path, {"text": "query"}).kind is LABELS
    with pytest.raises(TuningError, match=r"--columns title=...: labels have text, label; leave it out"):
        read(path, {"text": "query", "title": "positive"})


def test_messages_name_the_file_s_own_columns(tmp_path: Path) -> None:
    for row, names, problem in (
        ({"q": "a", "p": None}, {"query": "q", "positive": "p"}, "p: it is null"),
        ({"q": "a", "p": "b", "n": 3}, {"query": "q", "positive": "p", "negatives": "n"}, "n: it is 3"),
        ({"t": " ", "l": 1}, {"text": "t", "label": "l"}, "t: the text is empty"),
        ({"t": "a", "l": None}, {"text": "t", "label": "l"}, "l: it is null; give a name"),
        ({"x": "a", "y": "b", "z": "c"}, {"a": "x", "b": "y", "score": "z"}, "z: it is 'c'; give a number"),
    ):
        with pytest.raises(TuningError, match=f"rows.jsonl, line 1: {problem}"):
            read(str(write_rows(tmp_path / "rows.jsonl", [row])), names)
