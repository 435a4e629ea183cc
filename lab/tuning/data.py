"""The rows to train on, of three kinds, read and checked by the rules of a corpus."""

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.readers import Reader
from corpus.rows import BadRow, Columns, CorpusError, Row, json_object
from lab.tuning.recipe import TuningError
from tasks import TITLED_TASK, prompt_for
from texts.checks import check_text, check_title

SEARCH_TASKS = ("retrieval_query", "question_answering", "fact_verification", "code_retrieval")
"""Tasks of a query, whose answers are documents."""
BAD_ROWS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Kind:
    """Which columns a kind of data has, the task of its first text, and what is measured."""

    name: str
    columns: tuple[str, ...]
    task: str
    measures: tuple[str, ...]
    optional: tuple[str, ...] = ()


PAIRS = Kind(
    "pairs", ("query", "positive"), "retrieval_query", ("ndcg_at_10", "recall_at_10"), ("negatives", "title", "task")
)
LABELS = Kind("labels", ("text", "label"), "classification", ("accuracy",))
SCORES = Kind("scores", ("a", "b", "score"), "semantic_similarity", ("cosine_spearman",))
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
        """The texts that may be in only one of the parts."""
        return (self.first, self.second) if self.second else (self.first,)

    def prompted(self) -> tuple[str, str]:
        """Return both texts under their prompts, as they are served: a query's positive is a document."""
        second = prompt_for(TITLED_TASK, self.title) if self.task in SEARCH_TASKS else prompt_for(self.task)
        return prompt_for(self.task) + self.first, second + self.second


@dataclass(frozen=True, slots=True)
class Data:
    """A file's rows, and a sentence that names the columns that were not read."""

    path: str
    kind: Kind
    examples: list[Example]
    note: str = ""


def read(path: str, names: Mapping[str, str] = MappingProxyType({})) -> Data:
    """Return the rows of a .jsonl, .csv or .parquet file; `names` maps our columns to those of the file.

    Raises TuningError or CorpusError, naming the file, the lines and the remedy: no row is dropped silently.
    """
    if not os.path.isfile(path):
        found = "it is no file" if os.path.exists(path) else "there is no such file"
        raise TuningError(f"{path}: {found}; name a .jsonl, .csv or .parquet file on this machine")
    file_format, present = header(path)
    kind, columns = kind_of(path, present, names)
    if file_format == "jsonl":  # any line may have what the first lacks
        columns = {name: name for name in kind.optional if name not in columns.values()} | columns
    first, *others = (name for name in (*kind.columns, *kind.optional) if name != "title" and name in columns)
    carried = tuple(columns[name] for name in others)
    examples, bad = list[Example](), list[str]()
    with closing(Reader(path, Columns(columns[first], columns.get("title"), carried=carried))) as reader:
        for row in reader.rows():
            try:
                if isinstance(row, BadRow):
                    raise ValueError(row.problem)
                values = _values(dict(zip(others, row.carried, strict=True)), file_format)
                examples.append(_example(kind, row, values, columns))
            except ValueError as error:
                bad.append(f"{reader.place(row.number)}: {error}")
    if bad:
        more = [f"and {len(bad) - BAD_ROWS_SHOWN:,} more rows"] if len(bad) > BAD_ROWS_SHOWN else []
        shown = "\n".join([*bad[:BAD_ROWS_SHOWN], *more])
        raise TuningError(f"{shown}\nNothing was trained: mend these rows or take them out")
    _check_differing(path, kind, examples, columns)
    unread = ", ".join(repr(name) for name in present if name not in columns.values())
    return Data(path, kind, examples, unread and f"Columns of {os.path.basename(path)} that are not read: {unread}.")


def header(path: str) -> tuple[str, list[str]]:
    """Return a file's format, and the columns that its schema, header or first line names.

    Raises CorpusError for a file that cannot be read, or that names no columns.
    """
    try:
        if path.lower().endswith(".parquet"):
            return "parquet", list(pq.read_schema(path).names)
        with closing(Reader(path, Columns(title="title"))) as reader, closing(Reader(path, Columns(), "txt")) as lines:
            line = next(lines.rows(), BadRow(1, "the file is empty"))
        if isinstance(line, BadRow):
            raise ValueError(line.problem)
        if reader.file_format == "jsonl":
            return "jsonl", list(json_object(line.text.encode()))
        return reader.file_format, next(csv.reader([line.text]))
    except CorpusError:
        raise
    except (ValueError, OSError, pa.ArrowException, csv.Error) as error:
        remedy = "give a JSON object a line, or CSV or Parquet with named columns"
        raise CorpusError(path, f"its columns cannot be read: {error}", remedy) from error


def kind_of(path: str, present: Sequence[str], names: Mapping[str, str]) -> tuple[Kind, dict[str, str]]:
    """Return the kind of the rows, and what each of its columns is called in the file.

    Raises TuningError where the columns fit no kind or several, or `names` has columns that the file or kind lacks.
    """
    found = ", ".join(map(repr, present)) or "none"
    for name, column in names.items():
        if column not in present:
            raise TuningError(f"--columns {name}={column}: {path} has no column {column!r}; its columns are {found}")
    columns = {name: name for name in present if name not in names.values()} | dict(names)
    fitting = [kind for kind in KINDS if columns.keys() >= set(kind.columns)]
    fitting = [kind for kind in fitting if names.keys() & set(kind.columns)] or fitting
    if not fitting:
        kinds = "; or ".join(", ".join(kind.columns) for kind in KINDS)
        raise TuningError(
            f"{path}: its columns are {found}; name them {kinds}, or say which is which with --columns text=NAME "
            f"label=NAME. Pairs may also have {', '.join(PAIRS.optional)}"
        )
    if len(fitting) > 1:
        fit = " and of ".join(f"{kind.name} ({', '.join(kind.columns)})" for kind in fitting)
        raise TuningError(f"{path}: it has the columns of {fit}; take those out that are not to be read")
    [kind] = fitting
    known = (*kind.columns, *kind.optional)
    if strange := names.keys() - set(known):
        raise TuningError(f"--columns {min(strange)}=...: {kind.name} have {', '.join(known)}; leave it out")
    return kind, {name: column for name, column in columns.items() if name in known}


def _values(values: dict[str, Any], file_format: str) -> dict[str, Any]:
    """Return what a reader carried as Python's values: .jsonl comes as JSON, and a field of .csv may be a JSON list."""
    if file_format == "jsonl":
        return {name: orjson.loads(value or "null") for name, value in values.items()}
    negatives = values.get("negatives")
    if isinstance(negatives, str):
        with suppress(orjson.JSONDecodeError):
            values["negatives"] = orjson.loads(negatives) if negatives.startswith("[") else negatives or None
    return values


def _example(kind: Kind, row: Row, values: Mapping[str, Any], columns: Mapping[str, str]) -> Example:
    """Return the example. Raises ValueError naming column, problem and remedy."""

    def checked(check: Callable[..., Any], name: str, *more: Any) -> Any:
        return check(values.get(name), columns.get(name, name), *more)

    if kind is LABELS:
        return Example(row.number, row.text, label=checked(_label, "label"), task=kind.task)
    if kind is SCORES:
        second, score = checked(check_text, "b"), checked(_score, "score")
        return Example(row.number, row.text, second, score=score, task=kind.task)
    positive, task = checked(check_text, "positive"), checked(_task, "task")
    negatives = checked(_negatives, "negatives", positive)
    return Example(row.number, row.text, positive, negatives=negatives, title=row.title, task=task)


def _label(value: Any, name: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError(f"{name}: it is {_shown(value)}; give a name or a whole number")
    return str(value)


def _score(value: Any, name: str) -> float:
    with suppress(TypeError, ValueError):
        if not isinstance(value, bool) and math.isfinite(score := float(value)):
            return score
    raise ValueError(f"{name}: it is {_shown(value)}; give a number")


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _task(value: Any, name: str) -> str:
    if value not in (None, "", *SEARCH_TASKS):
        raise ValueError(f"{name}: {value!r} is not the task of a query; use one of {', '.join(SEARCH_TASKS)}")
    return str(value or PAIRS.task)


def _negatives(value: Any, name: str, positive: str) -> tuple[str, ...]:
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


def _check_differing(path: str, kind: Kind, examples: Sequence[Example], columns: Mapping[str, str]) -> None:
    """Raise TuningError where there is nothing to tell apart."""
    if not examples:
        raise TuningError(f"{path}: it has no rows; give some")
    values = {example.label if kind is LABELS else example.score for example in examples}
    if kind is not PAIRS and len(values) == 1:
        remedy = "give two labels or more" if kind is LABELS else "give different scores"
        column = columns[kind.columns[-1]]
        raise TuningError(f"{path}: {column}: all {len(examples):,} rows have {values.pop()!r}; {remedy}")
