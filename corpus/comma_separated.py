"""Rows of .csv, where a quote that is never closed may swallow others: then reading stops, and no row is lost."""

import csv
from collections.abc import Callable, Iterable, Iterator

from corpus.arrow import check_names
from corpus.rows import BadRow, Columns, CorpusError, Row, make_row, not_utf8

# A quote that is never closed makes the rest of the file one field; this ends it. A text of 10 MB is far below.
MAX_FIELD_CHARS = 1 << 28


class _Lines:
    """The lines of a file, and where in a row of several of them a quote opened last."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._lines = iter(lines)
        self._number = self._opened = self._opened_before = 0
        self._is_open = False

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self._number += 1
            text = line.decode("utf-8", "surrogateescape")
            self._opened_before = self._opened if self._is_open else 0
            quotes = text.replace('""', "").count('"')  # two in a row open nothing, or are one within a text
            self._is_open ^= bool(quotes % 2)
            if quotes and self._is_open:
                self._opened = self._number
            yield text
        self._opened_before = 0

    def begin_row(self) -> None:
        """Count quotes anew."""
        self._is_open, self._opened = False, self._number + 1

    def reach(self, first: int, is_whole: bool) -> tuple[int, int] | None:
        """Return where the quote opened that ended in the row's last line, and that line, if the row may have others.

        `first` is the row's first line. A row that is not whole was left at an error, perhaps within quotes.
        """
        if self._number > first or (self._is_open and not is_whole):
            return self._opened_before or self._opened, self._number
        return None


def csv_rows(lines: Iterable[bytes], columns: Columns, place: Callable[[int], str]) -> Iterator[Row | BadRow]:
    """Yield the rows of a .csv whose first line is its header; `place` names a line.

    Raises CorpusError for a wrong header, and at a row that may have swallowed others.
    """
    csv.field_size_limit(MAX_FIELD_CHARS)
    source = _Lines(lines)
    table = csv.reader(source, strict=True)
    try:
        header = next(table, [])
    except csv.Error as error:
        raise CorpusError(f"{place(1)}: the header is not CSV: {_in_words(error)}") from error
    check_names(place(1), header, columns)
    while True:
        source.begin_row()
        number = table.line_num + 1  # a quoted field may span lines: the row is named by its first
        try:
            fields = next(table, None)
            if fields is None:
                return
            problem = _misfit(fields, header)
        except csv.Error as error:
            fields, problem = None, f"not CSV: {_in_words(error)}"
        if fields is not None and problem is None:
            yield _row(number, dict(zip(header, fields, strict=True)), columns)
        elif reach := source.reach(number, is_whole=fields is not None):
            opened, end = reach
            raise CorpusError(
                f"{place(opened)}: a quote opens here, and the row that began in line {number} goes wrong in line "
                f"{end}: {problem}. It may have taken in other rows, so it is not skipped: mend the quotes from here on"
            )
        else:
            yield BadRow(number, problem or "")


def _misfit(fields: list[str], header: list[str]) -> str | None:
    """Return what is wrong with the number of fields."""
    if len(fields) == len(header):
        return None
    if not "".join(fields).strip():
        return "the line is blank; leave it out"
    remedy = "put fields with commas in quotes" if len(fields) > len(header) else "give each column a field, if empty"
    return f"{len(fields)} fields, and the header has {len(header)}; {remedy}"


def _row(number: int, fields: dict[str, str], columns: Columns) -> Row | BadRow:
    try:
        values = {name: _utf8(fields[name], name) for name in columns.wanted()}
        return make_row(columns, number, values, tuple(values[name] for name in columns.carried))
    except ValueError as error:
        return BadRow(number, str(error))


def _in_words(error: csv.Error) -> str:
    if "new-line" in str(error):
        return "a carriage return stands alone in a field; put the field in quotes, and end lines with LF or CRLF"
    return f"{error}; a quote in a quoted field is written twice"


def _utf8(value: str, column: str) -> str:
    """Return the value, which was decoded with surrogateescape. Raises ValueError when it was not UTF-8."""
    try:
        return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{column}: {not_utf8(error)}") from None
