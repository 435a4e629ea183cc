"""A row of a corpus, and what makes it unfit: the same rules as for the texts of a prediction."""

import json
import re
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from types import MappingProxyType
from typing import Any

import msgspec
import orjson

from corpus.limits import ROW_VALUES, too_many_values
from texts.checks import check_text, check_title

Id = int | str

TEXT_HASH = "text_hash"
OUTPUT_COLUMNS = ("id", "embedding", "token_count", "truncated", "prompted", "start", "end", TEXT_HASH)
"""The columns that outputs have; `start` and `end` only where texts are cut into chunks, the hash where it is kept."""
INNER_COLUMNS = ("#number", "#block", "#text", "#problem", "#file", "#hash")
"""What a block notes of its rows, beside id and carried columns."""
# What Python's json writes for numbers that JSON lacks. Strings match first, as they may contain such a word.
NO_NUMBERS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?Infinity|NaN')
RAW = dict[str, msgspec.Raw]
ABSENT = object()
# Dots in longer names do not lead to columns within columns.
NESTED_CHARS = 256
NOTHING: Mapping[str, str | None] = MappingProxyType({})
# How much of names and values a message shows.
SHOWN_CHARS = 80
SHOWN_NAMES = 5

_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = SHOWN_CHARS
_repr.maxlevel = 2


class CorpusError(ValueError):
    """A corpus that cannot be embedded as asked.

    `place` is a file, a line or row of it, or an option, if there is such a place; `problem` says what is wrong and
    `remedy` what to do. A remedy that begins with a capital is a sentence of its own.
    """

    def __init__(self, place: str, problem: str, remedy: str = "") -> None:
        super().__init__(place, problem, remedy)
        self.place, self.problem, self.remedy = place, problem, remedy

    def __str__(self) -> str:
        place = f"{self.place}: " if self.place else ""
        joint = ". " if self.remedy[:1].isupper() else "; " if self.remedy else ""
        return f"{place}{self.problem}{joint}{self.remedy}"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; a .txt file has none, each line is a text. `carried` columns are copied to the output.

    "a.b" is the field b of a column a, unless a column has that very name. With `carry_all`, `carried` is known once
    the input is open: all columns, but no `id` that holds the ids. With `quotes`, messages show a little of what the
    file holds. A server's do not, as they are logged. Raises CorpusError for a carried column that is named twice, or
    that the output has already.
    """

    text: str = "text"
    title: str | None = None
    id: str | None = None
    carried: tuple[str, ...] = ()
    quotes: bool = True
    carry_all: bool = False

    def __post_init__(self) -> None:
        for name in self.carried:
            if name in OUTPUT_COLUMNS:
                remedy = "rename it in the input" if name != "id" else "name it with --id, or rename it in the input"
                raise CorpusError("carry", f"{quoted(name)} is a column of the output itself", remedy)
            if name in INNER_COLUMNS:
                raise CorpusError("carry", f"{quoted(name)} is a name that a run uses itself", "rename it in the input")
            if (count := self.carried.count(name)) > 1:
                raise CorpusError("carry", f"{quoted(name)} is named {count} times", "name it once")

    def wanted(self) -> list[str]:
        """Return the columns to read, each once."""
        names = [self.text, self.title, self.id, *self.carried]
        return list(dict.fromkeys(name for name in names if name is not None))

    def carrying(self, names: Iterable[str]) -> "Columns":
        """Return these columns, with `names` carried if all are to be."""
        if not self.carry_all:
            return self
        carried = (name for name in dict.fromkeys(names) if name != "id" or name != self.id)
        return replace(self, carried=tuple(carried), carry_all=False)

    def among(self, names: Collection[str], kind: str) -> str:
        """Return in words which columns or keys (`kind`: column or key) there are."""
        if not names:
            return f"no {kind}s"
        return listed(names, len(names)) if self.quotes else f"{len(names):,} {kind}{'s' if len(names) > 1 else ''}"

    def shown(self, value: object) -> str:
        """Return a value in words."""
        return quoted(value) if self.quotes else f"of type {type(value).__name__}"


@dataclass(frozen=True, slots=True)
class Row:
    """A text. `number` is its line (of parquet, its row) in the file, from 1; `id` is its column's, or the number.

    `file` is the file's name among those of a corpus, "" for the only one.
    """

    number: int
    text: str
    title: str | None
    id: Id
    carried: tuple[Any, ...] = ()
    file: str = ""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be embedded; `problem` names the column and the remedy.

    Of a file that cannot be read further, this is the first row that is lost, 0 for all.
    """

    number: int
    problem: str
    file: str = ""


class UnfitRow(ValueError):
    """A row that cannot be embedded, where the caller wants to stop at such a row."""

    def __init__(self, row: BadRow) -> None:
        super().__init__(row)
        self.row = row


def make_row(columns: Columns, number: int, values: dict[str, Any], carried: tuple[Any, ...]) -> Row:
    """Return the row of the values of text, title and id, and of the carried ones.

    Raises ValueError naming column, problem and remedy.
    """
    if columns.text not in values:
        raise ValueError(f"no {quoted(columns.text)} among {columns.among(values, 'key')}; it is the text")
    text = check_text(values[columns.text], label(columns.text))
    title = check_title(values.get(columns.title), label(columns.title)) if columns.title else None
    row_id = number if columns.id is None else _check_id(values.get(columns.id), columns.id, columns)
    return Row(number, text, title, row_id, carried)


def _check_id(value: object, column: str, columns: Columns) -> Id:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        what = "null" if value is None else columns.shown(value)
        raise ValueError(f"{label(column)}: it is {what}; give a whole number or a string")
    return value


class IdKind:
    """The kind of the ids so far, in a file without a schema: strings, or whole numbers of a single 64-bit type."""

    def __init__(self, example: Id | None = None) -> None:
        """Begin with an `example`, of the kind that other files have."""
        self._before = example
        numbers = (0, example) if isinstance(example, int) else (0,)
        self._least, self._most = min(numbers), max(numbers)

    def check(self, value: Id, column: str, columns: Columns) -> None:
        """Raise ValueError for an id of another kind than those before it."""
        before, problem = self._before, ""
        if before is not None and type(value) is not type(before):
            kind = "a whole number" if isinstance(before, int) else "a string"
            problem = f"before it were {kind}; give all of one kind"
        elif isinstance(value, int):
            least, most = min(value, self._least), max(value, self._most)
            if least < 0 and most >= 1 << 63:
                reached = columns.shown(self._least if value > 0 else self._most)
                problem = f"reached {reached}; no type of 64 bits holds both, so write all ids as strings"
            else:
                self._least, self._most = least, most
        if problem:
            raise ValueError(f"{label(column)}: it is {columns.shown(value)} and ids {problem}")
        self._before = value


def json_object(line: bytes) -> dict[str, Any]:
    """Return the object in a line of .jsonl. Raises ValueError."""
    try:
        values = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        decode(line)
        if not line.strip():
            raise ValueError("the line is blank; give a JSON object, or leave the line out") from None
        remedy = "write whole UTF-16 pairs or UTF-8" if "surrogate" in error.msg else "give one JSON object a line"
        raise ValueError(f"not JSON: {error}; {remedy}") from None
    if not isinstance(values, dict):
        raise ValueError('not a JSON object; write each line as {"text": ...}')
    return values


def json_columns(
    line: bytes, columns: Columns, given: Mapping[str, str | None] = NOTHING
) -> tuple[dict[str, Any], tuple[str | None, ...]]:
    """Return the object in a line of .jsonl, and the JSON of each carried column as it stands, None for null or absent.

    Columns that the line lacks are as `given`. NaN and Infinity, which JSON lacks, are read as null unless a wanted
    column holds them. Raises ValueError.
    """
    if len(line) > ROW_VALUES and sum(map(line.count, (b",", b"[", b"{"))) > ROW_VALUES:
        raise ValueError(too_many_values("the line"))
    try:
        values = json_object(line)
    except ValueError:
        if (mended := _without_no_numbers(line, columns)) is None:
            raise
        line, values = mended, json_object(mended)
    own = {name: within(values, name) for name in columns.wanted() if "." in name}
    values |= {name: value for name, value in own.items() if value is not ABSENT}
    lacking = {name: value for name, value in given.items() if name not in values}
    if not columns.carried:
        values.update(lacking)
        return values, ()
    try:
        raw = msgspec.json.decode(line, type=RAW)  # orjson would round numbers beyond 64 bits
        stands = [None if values.get(name) is None else bytes(within(raw, name)).decode() for name in columns.carried]
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"its columns cannot be carried as they stand: {cut(str(error))}; nest them less") from None
    for i, name in enumerate(columns.carried):
        if lacking.get(name) is not None:
            stands[i] = json.dumps(lacking[name])
    values.update(lacking)
    return values, tuple(stands)


def within(values: Any, name: str) -> Any:
    """Return the value under a key, or under dotted keys within each other; ABSENT without one."""
    if isinstance(values, msgspec.Raw):
        values = msgspec.json.decode(values, type=RAW) if bytes(values)[:1] == b"{" else None
    if not isinstance(values, dict) or name in values:
        return values[name] if isinstance(values, dict) else ABSENT
    heads = (name[:i] for i, sign in enumerate(name if len(name) <= NESTED_CHARS else "") if sign == ".")
    found = (within(values[head], name[len(head) + 1 :]) for head in heads if head in values)
    return next((value for value in found if value is not ABSENT), ABSENT)


def plain_json(value: str | None) -> str | None:
    """Return a JSON string as itself and any other JSON as its text."""
    return json.loads(value) if value is not None and value.startswith('"') else value


def _without_no_numbers(line: bytes, columns: Columns) -> bytes | None:
    """Return the line with null for NaN and Infinity; None if it is not JSON apart from those.

    Raises ValueError if a wanted column holds such a number.
    """
    if len(line) > ROW_VALUES and line.count(b'"') > ROW_VALUES:
        return None  # each string would become an object of its own
    mended = NO_NUMBERS.sub(lambda found: found[0] if found[0].startswith(b'"') else b"null", line)
    if mended == line:
        return None
    try:
        values, _ = json.loads(line), orjson.loads(mended)
    except (ValueError, RecursionError):
        return None
    for name in columns.wanted() if isinstance(values, dict) else ():
        try:
            value = within(values, name)
            json.dumps(None if value is ABSENT else value, allow_nan=False)
        except (ValueError, RecursionError):
            raise ValueError(
                f"{label(name)}: it holds NaN or Infinity, which JSON has not; write null in its place"
            ) from None
    return mended


def decode(line: bytes) -> str:
    """Return UTF-8 as a string. Raises ValueError."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return in words where the bytes are not UTF-8."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02X} at byte {error.start}; save the file as UTF-8"


def quoted(value: object) -> str:
    """Return a value as Python writes it, in at most 80 characters."""
    return cut(_repr.repr(value))


@lru_cache(maxsize=64)
def label(name: str) -> str:
    """Return the name of a column as the user gave it, to begin a message with."""
    return cut(" ".join(name[: 2 * SHOWN_CHARS].split()))


def listed(names: Iterable[object], count: int) -> str:
    """Return the first of `count` names, and how many others there are."""
    shown = ", ".join(map(quoted, islice(names, SHOWN_NAMES)))
    return f"{shown} and {count - SHOWN_NAMES:,} more" if count > SHOWN_NAMES else shown


def cut(text: str, length: int = SHOWN_CHARS) -> str:
    """Return a text without control characters, its end left out where it is longer than `length`."""
    text = text if len(text) <= length else f"{text[: length - 3]}..."
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)
