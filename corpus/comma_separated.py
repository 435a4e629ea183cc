"""Rows of .csv. A quote that is never closed may swallow other rows: then reading stops, and no row is lost."""

import csv
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from corpus.arrow import check_names
from corpus.limits import ROW_VALUES, Limits, too_many_values
from corpus.lines import LINE_END_BYTES, Overlong
from corpus.rows import NOTHING, BadRow, Columns, CorpusError, Row, label, make_row, not_utf8

# Stands for a line beyond a limit, alone or with those before it: within quotes and outside, it is no row.
NO_ROW = '""x"x\n'


class _Lines:
    """The lines of a file, and where in a row of several of them a quote opened last."""

    def __init__(self, lines: Iterable[bytes | Overlong], limits: Limits) -> None:
        self._lines, self._limits = iter(lines), limits
        self._number = self._opened = self._opened_before = 0
        self.problem: str | None = None
        self.begin_row()

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            self._opened_before = self._opened if self._is_open else 0
            if isinstance(line, Overlong):
                text, quotes, self.problem = NO_ROW, line.quotes, line.problem
            else:
                self.problem = self._too_much(line)
                text = NO_ROW if self.problem else line.decode("utf-8", "surrogateescape")
                quotes = line.replace(b'""', b"").count(b'"')  # two in a row open nothing, or are one within a text
            self._is_open ^= bool(quotes % 2)
            if quotes and self._is_open:
                self._opened = self._number
            yield text
        self._opened_before = 0

    def _too_much(self, line: bytes) -> str | None:
        """Add a line to its row, and return in words which limit the row exceeds, if any."""
        self._bytes += len(line)
        self._commas += line.count(b",")
        if self._bytes > self._limits.line_bytes + LINE_END_BYTES:
            return self._limits.too_long("the row")
        return too_many_values("the row") if self._commas > ROW_VALUES else None

    def begin_row(self) -> None:
        """Reset the counts of quotes, bytes and commas."""
        self._is_open, self._opened = False, self._number + 1
        self._bytes = self._commas = 0
        self.problem = None

    def reach(self, first: int, is_whole: bool) -> tuple[int, int] | None:
        """Return the line in which the row's last quote opened, and its last line, if it may contain other rows.

        `first` is the row's first line. A row that is not whole was left at an error, perhaps within quotes.
        """
        if self._number > first or (self._is_open and not is_whole):
            return self._opened_before or self._opened, self._number
        return None


def csv_header(lines: Iterable[bytes | Overlong], place: Callable[[int], str], limits: Limits) -> list[str]:
    """Return the columns of a .csv. Raises CorpusError for a first line that is not CSV."""
    return _opened(lines, place, limits)[2]


def csv_rows(
    lines: Iterable[bytes | Overlong],
    columns: Columns,
    place: Callable[[int], str],
    limits: Limits,
    given: Mapping[str, str | None] = NOTHING,
) -> Iterator[Row | BadRow]:
    """Yield the rows of a .csv whose first line is its header; `place` names a line.

    Columns that the header lacks are as `given`. Raises CorpusError for a wrong header, and at a row that may have
    swallowed others.
    """
    source, table, header = _opened(lines, place, limits)
    check_names(place(1), header, Counter(header), columns, given)
    while True:
        source.begin_row()
        number = table.line_num + 1  # a quoted field may span lines: the row is named by its first
        try:
            fields = next(table, None)
            if fields is None:
                return
            problem = _misfit(fields, header)
        except csv.Error as error:
            fields, problem = None, source.problem or f"not CSV: {_in_words(error)}"
        if fields is not None and problem is None:
            yield _row(number, dict(zip(header, fields, strict=True)), columns, given)
        elif reach := source.reach(number, is_whole=fields is not None):
            opened, end = reach
            raise CorpusError(
                place(opened),
                f"a quote opens here, and the row that began in line {number} goes wrong in line {end}: {problem}",
                "It may have taken in other rows, so it is not skipped: mend the quotes from here on",
            )
        else:
            yield BadRow(number, problem or "")


def _opened(
    lines: Iterable[bytes | Overlong], place: Callable[[int], str], limits: Limits
) -> "tuple[_Lines, Any, list[str]]":
    """Return the lines, the rows and the header."""
    csv.field_size_limit(sys.maxsize)  # the limit of a row applies, also after a quote that is never closed
    source = _Lines(lines, limits)
    table = csv.reader(source, strict=True)
    try:
        return source, table, next(table, [])
    except csv.Error as error:
        why = source.problem or f"the header is not CSV: {_in_words(error)}"
        raise CorpusError(place(1), why) from error


def _misfit(fields: list[str], header: list[str]) -> str | None:
    """Return in words how the number of fields is wrong, if it is."""
    if len(fields) == len(header):
        return None
    if not "".join(fields).strip():
        return "the line is blank; leave it out"
    remedy = "put fields with commas in quotes" if len(fields) > len(header) else "give each column a field, if empty"
    return f"{len(fields)} fields, and the header has {len(header)}; {remedy}"


def _row(number: int, fields: dict[str, str], columns: Columns, given: Mapping[str, str | None]) -> Row | BadRow:
    try:
        own = {name: _utf8(fields[name], label(name)) for name in columns.wanted() if name in fields}
        values = {**given, **own}
        return make_row(columns, number, values, tuple(values[name] for name in columns.carried))
    except ValueError as error:
        return BadRow(number, str(error))


def _in_words(error: csv.Error) -> str:
    if "new-line" in str(error):
        return "a carriage return stands alone in a field; put the field in quotes, and end lines with LF or CRLF"
    return f"{error}; a quote in a quoted field is written twice"


def _utf8(value: str, column: str) -> str:
    """Return a value that was decoded with surrogateescape. Raises ValueError if it was not UTF-8."""
    try:
        return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{column}: {not_utf8(error)}") from None
