"""A row of a corpus, and what makes it unfit: the same rules as for the texts of a prediction."""

from dataclasses import dataclass
from typing import Any

import orjson

from texts.checks import check_text, check_title

Id = int | str

OUTPUT_COLUMNS = ("id", "embedding", "token_count", "truncated", "prompted", "start", "end")
"""The columns that every output has: `start` and `end` only where texts are cut into chunks."""


class CorpusError(ValueError):
    """A corpus that cannot be embedded as asked: the file, the line or row, the problem and the remedy."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; a .txt file has none, each line is a text. `carried` columns are copied to the output.

    Raises CorpusError for a carried column that the output has already.
    """

    text: str = "text"
    title: str | None = None
    id: str | None = None
    carried: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.carried:
            if name in OUTPUT_COLUMNS:
                raise CorpusError(f"carry: {name!r} is a column of the output itself; rename it in the input")

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


def make_row(columns: Columns, number: int, values: dict[str, Any], id_type: type | None = None) -> Row:
    """Return the row; the id must be of `id_type` if that is given.

    Raises ValueError naming column, problem and remedy.
    """
    if columns.text not in values:
        raise ValueError(f"no {columns.text!r} among {', '.join(map(repr, values)) or 'no keys'}; it is the text")
    text = check_text(values[columns.text], columns.text)
    title = check_title(values.get(columns.title), columns.title) if columns.title else None
    row_id = number if columns.id is None else _check_id(values.get(columns.id), columns.id, id_type)
    return Row(number, text, title, row_id, tuple(values.get(name) for name in columns.carried))


def _check_id(value: object, column: str, id_type: type | None) -> Id:
    if not isinstance(value, (int, str)) or isinstance(value, bool):
        raise ValueError(f"{column}: it is {'null' if value is None else repr(value)}; give a whole number or a string")
    if id_type is not None and type(value) is not id_type:
        kinds = {int: "a whole number", str: "a string"}
        raise ValueError(f"{column}: it is {value!r} and ids before it were {kinds[id_type]}; give all of one kind")
    return value


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


def decode(line: bytes) -> str:
    """Return UTF-8 as a string. Raises ValueError."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(error)) from None


def not_utf8(error: UnicodeDecodeError) -> str:
    """Return in words where the bytes were not UTF-8."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02X} at byte {error.start}; save the file as UTF-8"
