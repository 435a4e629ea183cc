"""A row of a corpus, and what makes it unfit: the same rules as for the texts of a prediction."""

import json
import re
from dataclasses import dataclass
from typing import Any

import msgspec
import orjson

from texts.checks import check_text, check_title

Id = int | str

OUTPUT_COLUMNS = ("id", "embedding", "token_count", "truncated", "prompted", "start", "end")
"""The columns that every output has: `start` and `end` only where texts are cut into chunks."""
INNER_COLUMNS = ("#number", "#block", "#text", "#problem")
"""What a block notes of its rows beside id and carried columns."""
# What Python's json writes for numbers that JSON has not; a string comes first, as it may hold such a word.
NO_NUMBERS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|-?Infinity|NaN')


class CorpusError(ValueError):
    """A corpus that cannot be embedded as asked: the file, the line or row, the problem and the remedy."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; a .txt file has none, each line is a text. `carried` columns are copied to the output.

    Raises CorpusError for a carried column that is named twice, or that the output has already.
    """

    text: str = "text"
    title: str | None = None
    id: str | None = None
    carried: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.carried:
            if name in OUTPUT_COLUMNS:
                raise CorpusError(f"carry: {name!r} is a column of the output itself; rename it in the input")
            if name in INNER_COLUMNS:
                raise CorpusError(f"carry: {name!r} is a name that a run uses itself; rename it in the input")
            if self.carried.count(name) > 1:
                raise CorpusError(f"carry: {name!r} is named {self.carried.count(name)} times; name it once")

    def wanted(self) -> list[str]:
        """Return the columns to read, each once."""
        names = [self.text, self.title, self.id, *self.carried]
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True, slots=True)
class Row:
    """One text. `number` is its line (row, of parquet) in the file, from 1; `id` is its column's, or the number."""

    number: int
    text: str
    title: str | None
    id: Id
    carried: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be embedded; `problem` names the column and the remedy."""

    number: int
    problem: str


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
        raise ValueError(f"no {columns.text!r} among {', '.join(map(repr, values)) or 'no keys'}; it is the text")
    text = check_text(values[columns.text], columns.text)
    title = check_title(values.get(columns.title), columns.title) if columns.title else None
    row_id = number if columns.id is None else _check_id(values.get(columns.id), columns.id)
    return Row(number, text, title, row_id, carried)


def _check_id(value: object, column: str) -> Id:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise ValueError(f"{column}: it is {'null' if value is None else repr(value)}; give a whole number or a string")
    return value


class IdKind:
    """What the ids of a file without a schema have been: strings, or whole numbers of one type of 64 bits."""

    def __init__(self) -> None:
        self._before: Id | None = None
        self._least = self._most = 0

    def check(self, value: Id, column: str) -> None:
        """Raise ValueError for an id that is not of one kind with those before it."""
        before, kinds = self._before, {int: "a whole number", str: "a string"}
        if before is not None and type(value) is not type(before):
            raise ValueError(
                f"{column}: it is {value!r} and ids before it were {kinds[type(before)]}; give all of one kind"
            )
        if isinstance(value, int):
            least, most = min(value, self._least), max(value, self._most)
            if least < 0 and most >= 1 << 63:
                raise ValueError(
                    f"{column}: it is {value} and ids reached {self._least if value > 0 else self._most}; no type of "
                    "64 bits holds both, so write all ids as strings"
                )
            self._least, self._most = least, most
        self._before = value


def json_object(line: bytes) -> dict[str, Any]:
    """Return the object of one line of .jsonl. Raises ValueError."""
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


def json_columns(line: bytes, columns: Columns) -> tuple[dict[str, Any], tuple[str | None, ...]]:
    """Return the object of one line of .jsonl, and the carried columns as they stand there, None for null or none.

    NaN and Infinity, which JSON has not, are read as null where no wanted column holds one. Raises ValueError.
    """
    try:
        values = json_object(line)
    except ValueError:
        if (mended := _without_no_numbers(line, columns)) is None:
            raise
        line, values = mended, json_object(mended)
    if not columns.carried:
        return values, ()
    try:
        raw = msgspec.json.decode(line, type=dict[str, msgspec.Raw])  # orjson's numbers have 64 bits, and others more
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"its columns cannot be carried as they stand: {error}; nest them less") from None
    stands = (None if values.get(name) is None else bytes(raw[name]).decode() for name in columns.carried)
    return values, tuple(stands)


def _without_no_numbers(line: bytes, columns: Columns) -> bytes | None:
    """Return a line with null for NaN and Infinity, None where it is no JSON beside them.

    Raises ValueError where a wanted column holds one.
    """
    mended = NO_NUMBERS.sub(lambda found: found[0] if found[0].startswith(b'"') else b"null", line)
    if mended == line:
        return None
    try:
        values, _ = json.loads(line), orjson.loads(mended)
    except (ValueError, RecursionError):
        return None
    for name in columns.wanted() if isinstance(values, dict) else ():
        try:
            json.dumps(values.get(name), allow_nan=False)
        except (ValueError, RecursionError):
            raise ValueError(f"{name}: it holds NaN or Infinity, which JSON has not; write null in its place") from None
    return mended


def decode(line: bytes) -> str:
    """Return UTF-8 as a string. Raises ValueError."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return in words where the bytes were not UTF-8."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02X} at byte {error.start}; save the file as UTF-8"
