"""The rows to train on, of three kinds, read and checked by the rules of a corpus."""

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
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
    """A file's rows, and in a sentence which of its columns were not read."""

    path: str
    kind: Kind
    examples: list[Example]
    note: str = ""


def read(path: str, names: Mapping[str, str] = MappingProxyType({})) -> Data:
    """Return the rows of a .jsonl, .csv or .parquet file, whose columns have other `names` than those of the kinds.

    Raises TuningError or CorpusError, which name the file, the lines and the remedy; a row that cannot be used is
    never left out in silence.
    """
    _check_file(path)
    present = column_names(path)
    kind, columns = kind_of(path, present, names)
    if format_of(path) == "jsonl":  # of which any line may have what the first has not
        columns = {name: name for name in present_without(kind.optional, columns)} | columns
    first, *others = kind.columns
    title = columns.get("title")
    read_as = {columns[name]: name for name in (*others, *kind.optional) if name != "title" and name in columns}
    reader = Reader(path, Columns(columns[first], title=title, carried=tuple(read_as)))
    examples, bad = list[Example](), list[BadRow]()
    for row in reader.rows():
        try:
            if isinstance(row, BadRow):
                raise ValueError(row.problem)
            examples.append(_example(kind, row, _values(row, read_as, reader.file_format), columns))
        except ValueError as error:
            bad.append(BadRow(row.number, str(error)))
    if bad:
        shown = "\n".join(f"{reader.place(row.number)}: {row.problem}" for row in bad[:BAD_ROWS_SHOWN])
        more = f"\nand {len(bad) - BAD_ROWS_SHOWN:,} more rows" if len(bad) > BAD_ROWS_SHOWN else ""
        raise TuningError(f"{shown}{more}\nNothing was trained: mend these rows or take them out")
    _check_differing(path, kind, examples, columns)
    unread = ", ".join(map(repr, present_without(present, columns)))
    return Data(path, kind, examples, unread and f"Columns of {path_name(path)} that are not read: {unread}.")


def _check_file(path: str) -> None:
    """Raise TuningError for what is no file; opening a pipe would wait for its writer."""
    if not os.path.isfile(path):
        found = "it is no file" if os.path.exists(path) else "there is no such file"
        raise TuningError(f"{path}: {found}; name a .jsonl, .csv or .parquet file on this machine")


def format_of(path: str) -> str:
    """Return the format that the end of a file's name tells. Raises CorpusError for another than these three."""
    stem, _, last = path.rpartition(".")
    suffix = f".{(stem if f'.{last.lower()}' in DECOMPRESSORS else path).rpartition('.')[2].lower()}"
    if FORMATS.get(suffix) not in ("jsonl", "csv", "parquet"):
        raise CorpusError(f"{path}: the format is told by the end of the name, which must be .jsonl, .csv or .parquet")
    return FORMATS[suffix]


def column_names(path: str) -> list[str]:
    """Return the columns that a file's schema, header or first line names. Raises CorpusError where it has none."""
    file_format, decompress = format_of(path), DECOMPRESSORS.get(f".{path.rpartition('.')[2].lower()}")
    try:
        with open(path, "rb") as raw:
            if file_format == "parquet":
                return list(pq.read_schema(raw).names)
            line = (decompress(raw) if decompress else raw).readline().removeprefix(BOM)
        if file_format == "csv":
            return next(csv.reader(io.StringIO(line.decode())), [])
        return list(json_object(line))
    except Exception as error:  # each decompressor has its own for damage
        remedy = "give a JSON object a line, or CSV or Parquet with named columns"
        raise CorpusError(f"{path}: its columns cannot be read: {error}; {remedy}") from error


def kind_of(path: str, present: Sequence[str], names: Mapping[str, str]) -> tuple[Kind, dict[str, str]]:
    """Return the kind of the rows, and for each column that it reads what that is called in the file.

    Raises TuningError where the columns fit no kind or several, or `names` has columns that the file or kind lacks.
    """
    found = ", ".join(map(repr, present)) or "none"
    for name, column in names.items():
        if column not in present:
            raise TuningError(f"--columns {name}={column}: {path} has no column {column!r}; its columns are {found}")
    columns = {name: name for name in present_without(present, names)} | dict(names)
    fitting = [kind for kind in KINDS if columns.keys() >= set(kind.columns)]
    fitting = [kind for kind in fitting if names.keys() & set(kind.columns)] or fitting
    if not fitting:
        kinds = "; or ".join(", ".join(kind.columns) for kind in KINDS)
        raise TuningError(
            f"{path}: its columns are {found}; name them {kinds}, or say which is which with "
            f"--columns {KINDS[1].columns[0]}=NAME {KINDS[1].columns[1]}=NAME. Pairs may also have "
            f"{', '.join(PAIRS.optional)}"
        )
    if len(fitting) > 1:
        fit = " and of ".join(f"{kind.name} ({', '.join(kind.columns)})" for kind in fitting)
        raise TuningError(f"{path}: it has the columns of {fit}; take those out that are not to be read")
    [kind] = fitting
    known = (*kind.columns, *kind.optional)
    if strange := names.keys() - set(known):
        raise TuningError(f"--columns {min(strange)}=...: {kind.name} have {', '.join(known)}; leave it out")
    return kind, {name: column for name, column in columns.items() if name in known}


def present_without(present: Sequence[str], columns: Mapping[str, str]) -> list[str]:
    """Return the columns of a file that are not among those named."""
    return [name for name in present if name not in columns.values()]


def _values(row: Row, read_as: Mapping[str, str], file_format: str) -> dict[str, Any]:
    """Return the carried values by the names of the kind."""
    values = dict(zip(read_as.values(), row.carried, strict=True))
    if file_format == "jsonl":
        return {name: None if value is None else orjson.loads(value) for name, value in values.items()}
    given = values.get("negatives")
    if isinstance(given, str):  # in a field of a .csv: a text, or a list in JSON
        with suppress(orjson.JSONDecodeError):
            values["negatives"] = orjson.loads(given) if given.startswith("[") else given or None
    return values


def _example(kind: Kind, row: Row, values: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """Return the example. Raises ValueError naming column, problem and remedy."""
    called = {name: columns.get(name, name) for name in (*kind.columns, *kind.optional)}
    if kind is PAIRS:
        positive = check_text(values.get("positive"), called["positive"])
        negatives = _negatives(values.get("negatives"), positive, called["negatives"])
        task = _task(values.get("task"), called["task"])
        return Example(row.number, row.text, positive, negatives=negatives, title=row.title, task=task)
    if kind is LABELS:
        label = values.get("label")
        if isinstance(label, bool) or not isinstance(label, str | int) or not str(label).strip():
            found = "null" if label is None else repr(label)
            raise ValueError(f"{called['label']}: it is {found}; give a name or a whole number")
        return Example(row.number, row.text, label=str(label), task=kind.task)
    second = check_text(values.get("b"), called["b"])
    return Example(row.number, row.text, second, score=_score(values.get("score"), called["score"]), task=kind.task)


def _negatives(value: Any, positive: str, name: str) -> tuple[str, ...]:
    """Return the negatives under their prompts. Each is a text, or an object with `text` and `title`."""
    listed = [value] if isinstance(value, str | dict) else value or []
    if not isinstance(listed, list):
        raise ValueError(f"{name}: it is {value!r}; give one text, or a list of texts")
    prompted = []
    for each in listed:
        text, title = (each.get("text"), each.get("title")) if isinstance(each, dict) else (each, None)
        document = check_text(text, name)
        if document == positive:
            raise ValueError(f"{name}: the positive is among them; a document cannot be both")
        prompted.append(prompt_for(TITLED_TASK, check_title(title, name)) + document)
    return tuple(prompted)


def _task(value: Any, name: str) -> str:
    if value in (None, ""):
        return PAIRS.task
    if value not in SEARCH_TASKS:
        raise ValueError(f"{name}: {value!r} is not the task of a query; use one of {', '.join(SEARCH_TASKS)}")
    return str(value)


def _score(value: Any, name: str) -> float:
    try:
        score = math.nan if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise ValueError(f"{name}: it is {'null' if value is None else repr(value)}; give a number")
    return score


def _check_differing(path: str, kind: Kind, examples: Sequence[Example], columns: Mapping[str, str]) -> None:
    """Raise TuningError where there is nothing to tell apart."""
    if not examples:
        raise TuningError(f"{path}: it has no rows; give some")
    if kind is LABELS and len({example.label for example in examples}) == 1:
        rows = f"all {len(examples):,} rows have {examples[0].label!r}"
        raise TuningError(f"{path}: {columns['label']}: {rows}; give two labels or more")
    if kind is SCORES and len({example.score for example in examples}) == 1:
        rows = f"all {len(examples):,} rows have {examples[0].score}"
        raise TuningError(f"{path}: {columns['score']}: {rows}; give different scores")


def path_name(path: str) -> str:
    """Return a file's name without its folders, for what is published."""
    return Path(path).name
