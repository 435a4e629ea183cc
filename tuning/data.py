"""The rows to train on, of three kinds, read and checked by the rules of a corpus."""

import csv
import io
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq

from corpus.readers import BOM, DECOMPRESSORS, FORMATS, Reader
from corpus.rows import BadRow, Columns, CorpusError, Row, json_object
from tasks import TITLED_TASK, prompt_for
from texts.checks import check_text, check_title
from tuning.recipe import TuningError

SEARCH_TASKS = ("retrieval_query", "question_answering", "fact_verification", "code_retrieval")
"""Tasks of a query, whose answers are documents."""
BAD_ROWS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Kind:
    """Which columns a kind of data has, the task of its first text, and what is measured."""

    name: str
    columns: tuple[str, ...]
    task: str
    optional: tuple[str, ...] = ()
    measures: tuple[str, ...] = ()


PAIRS = Kind(
    "pairs", ("query", "positive"), "retrieval_query", ("negatives", "title", "task"), ("ndcg_at_10", "recall_at_10")
)
LABELS = Kind("labels", ("text", "label"), "classification", (), ("accuracy",))
SCORES = Kind("scores", ("a", "b", "score"), "semantic_similarity", (), ("cosine_spearman",))
KINDS = (PAIRS, LABELS, SCORES)


@dataclass(frozen=True, slots=True)
class Example:
    """A row: a query and its positive, a text and its label, or two texts and how similar they are."""

    number: int
    first: str
    second: str = ""
    label: str = ""
    score: float = 0.0
    negatives: tuple[str, ...] = ()
    """Under their prompts already."""
    title: str | None = None
    task: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of which none may be both in the training and in the held-out part."""
        return (self.first, self.second) if self.second else (self.first,)

    def prompted(self) -> tuple[str, str]:
        """Return both texts under their prompts, as they are served: a query's positive is a document."""
        if self.task in SEARCH_TASKS:
            return prompt_for(self.task) + self.first, prompt_for(TITLED_TASK, self.title) + self.second
        return prompt_for(self.task) + self.first, prompt_for(self.task) + self.second


@dataclass(frozen=True, slots=True)
class Data:
    """A file's rows."""

    path: str
    kind: Kind
    examples: list[Example]


def read(path: str) -> Data:
    """Return the rows of a .jsonl, .csv or .parquet file.

    Raises TuningError or CorpusError, which name the file, the lines and the remedy; a row that cannot be used is
    never left out in silence.
    """
    kind, present = _kind_of(path, column_names(path))
    first, *others = kind.columns
    carried = tuple(name for name in (*others, *kind.optional) if name != "title" and name in present)
    reader = Reader(path, Columns(first, title="title" if "title" in present else None, carried=carried))
    examples, bad = [], list[BadRow]()
    for row in reader.rows():
        if isinstance(row, Row):
            try:
                examples.append(_example(kind, row, _values(row, carried, reader.file_format)))
            except ValueError as error:
                bad.append(BadRow(row.number, str(error)))
        else:
            bad.append(row)
    if bad:
        shown = "\n".join(f"{reader.place(row.number)}: {row.problem}" for row in bad[:BAD_ROWS_SHOWN])
        more = f"\nand {len(bad) - BAD_ROWS_SHOWN:,} more rows" if len(bad) > BAD_ROWS_SHOWN else ""
        raise TuningError(f"{shown}{more}\nNothing was trained: mend these rows or take them out")
    _check_labels(path, kind, examples)
    return Data(path, kind, examples)


def column_names(path: str) -> list[str]:
    """Return the columns that a file's schema, header or first line names. Raises CorpusError where it has none."""
    stem, _, last = path.rpartition(".")
    decompress = DECOMPRESSORS.get(f".{last.lower()}")
    suffix = f".{(stem if decompress else path).rpartition('.')[2].lower()}"
    if FORMATS.get(suffix) not in ("jsonl", "csv", "parquet"):
        raise CorpusError(f"{path}: the format is told by the end of the name, which must be .jsonl, .csv or .parquet")
    try:
        with open(path, "rb") as raw:
            if suffix == ".parquet":
                return list(pq.read_schema(raw).names)
            line = (decompress(raw) if decompress else raw).readline().removeprefix(BOM)
        if suffix == ".csv":
            return next(csv.reader(io.StringIO(line.decode())), [])
        return list(json_object(line))
    except (OSError, EOFError, ValueError, csv.Error) as error:
        remedy = "give a JSON object a line, or CSV or Parquet with named columns"
        raise CorpusError(f"{path}: its columns cannot be read: {error}; {remedy}") from error


def _kind_of(path: str, names: list[str]) -> tuple[Kind, set[str]]:
    present = set(names)
    for kind in KINDS:
        if present.issuperset(kind.columns):
            return kind, present
    kinds = "; or ".join(", ".join(kind.columns) for kind in KINDS)
    raise TuningError(
        f"{path}: its columns are {', '.join(map(repr, names)) or 'none'}; name them {kinds}. "
        f"Pairs may also have {', '.join(PAIRS.optional)}"
    )


def _values(row: Row, carried: tuple[str, ...], file_format: str) -> dict[str, Any]:
    values = dict(zip(carried, row.carried, strict=True))
    if file_format == "jsonl":
        return {name: None if value is None else orjson.loads(value) for name, value in values.items()}
    given = values.get("negatives")
    if isinstance(given, str):  # in a field of a .csv: a text, or a list in JSON
        with suppress(orjson.JSONDecodeError):
            values["negatives"] = orjson.loads(given) if given.startswith("[") else given or None
    return values


def _example(kind: Kind, row: Row, values: Mapping[str, Any]) -> Example:
    """Return the example. Raises ValueError naming column, problem and remedy."""
    if kind is PAIRS:
        positive = check_text(values.get("positive"), "positive")
        negatives = _negatives(values.get("negatives"), positive)
        return Example(
            row.number, row.text, positive, negatives=negatives, title=row.title, task=_task(values.get("task"))
        )
    if kind is LABELS:
        label = values.get("label")
        if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
            raise ValueError(f"label: it is {'null' if label is None else repr(label)}; give a name or a whole number")
        return Example(row.number, row.text, label=str(label), task=kind.task)
    second = check_text(values.get("b"), "b")
    return Example(row.number, row.text, second, score=_score(values.get("score")), task=kind.task)


def _negatives(value: Any, positive: str) -> tuple[str, ...]:
    """Return the negatives under their prompts. Each is a text, or an object with `text` and `title`."""
    listed = [value] if isinstance(value, str | dict) else value or []
    if not isinstance(listed, list):
        raise ValueError(f"negatives: it is {value!r}; give one text, or a list of texts")
    prompted = []
    for each in listed:
        text, title = (each.get("text"), each.get("title")) if isinstance(each, dict) else (each, None)
        document = check_text(text, "negatives")
        if document == positive:
            raise ValueError("negatives: the positive is among them; a document cannot be both")
        prompted.append(prompt_for(TITLED_TASK, check_title(title, "negatives")) + document)
    return tuple(prompted)


def _task(value: Any) -> str:
    if value in (None, ""):
        return PAIRS.task
    if value not in SEARCH_TASKS:
        raise ValueError(f"task: {value!r} is not the task of a query; use one of {', '.join(SEARCH_TASKS)}")
    return str(value)


def _score(value: Any) -> float:
    try:
        score = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"score: it is {'null' if value is None else repr(value)}; give a number")
    return score


def _check_labels(path: str, kind: Kind, examples: list[Example]) -> None:
    """Raise TuningError where there is nothing to tell apart."""
    if kind is LABELS and len({example.label for example in examples}) == 1:
        raise TuningError(
            f"{path}: label: all {len(examples):,} rows have {examples[0].label!r}; give two labels or more"
        )
    if kind is SCORES and len({example.score for example in examples}) == 1:
        raise TuningError(f"{path}: score: all {len(examples):,} rows have {examples[0].score}; give different scores")


def path_name(path: str) -> str:
    """Return a file's name without its folders, for what is published."""
    return Path(path).name
