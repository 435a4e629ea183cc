"""The files of a corpus, read one after another as if they were one."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from corpus.arrow import common
from corpus.columnar import idle_processes
from corpus.listing import ListedFile, listed
from corpus.readers import AS_JSON, Reader, Stopped
from corpus.rows import BadRow, Columns, CorpusError, Id, IdKind, Row, cut, label, quoted
from corpus.sources import Unreachable

# Files looked into at once where each takes a request or two.
SURVEYED_AT_ONCE = 8


@dataclass(slots=True)
class _Surveyed:
    """What is known of a file: its `rows` before it is read if `is_told`, or else when it was read."""

    file: ListedFile
    place: str
    unit: str = "line"
    size: int = 0
    rows: int | None = None
    is_told: bool = False
    id_type: pa.DataType | None = None
    fields: Sequence[pa.Field] = ()
    problem: CorpusError | None = None
    """Why it cannot be read."""


LookInto = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]
"""Calls a function with each item, and returns what it returns."""


class Inputs:
    """One or more files: paths, URLs, folders and globs.

    The rows come file by file, by their names. Of a single named file, rows without an id column have their number as
    id; of all others, the file's name and number: `2024/a.parquet#7`. Columns of different types become a type that
    holds all, and carried ones that a file lacks are null.

    With `skip`, files that cannot be read are bad rows, numbered 0; one that cannot be read further is a bad row after
    its rows up to there. Raises CorpusError for no file, for files that do not go together, and without `skip` for one
    that cannot be read. Messages call a single file `name`.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        columns: Columns,
        file_format: str | None = None,
        skip: bool = False,
        name: str | None = None,
        look_into: LookInto | None = None,
    ) -> None:
        """`look_into` looks into the files, by default this process does."""
        self._format, self._skip, self._name = file_format, skip, name
        self.columns = columns
        self._reader: Reader | None = None
        self._stopped, self._rows_read = False, 0
        self._current: _Surveyed | None = None
        files = [_Surveyed(file, name or file.path) for file in listed(inputs)]
        self._is_single = [each.file.name for each in files] == [""]
        files = list((look_into or _look_into)(self._survey, files))
        self._files = {each.file.name: each for each in files}
        readable = [each for each in files if not each.problem]
        if not readable and files[0].problem:
            raise files[0].problem
        self.carried_fields = self._fields_of_all(readable)
        for each in readable:
            each.fields = ()  # as many as files have columns
        self.columns = replace(columns, carried=tuple(field.name for field in self.carried_fields), carry_all=False)
        self.id_type, self._example_id = self._ids_of_all(readable)

    @property
    def files(self) -> list[ListedFile]:
        """The files, in the order in which they are read."""
        return [surveyed.file for surveyed in self._files.values()]

    def _reader_of(self, file: ListedFile) -> Reader:
        many = not self._is_single
        return Reader(file.path, self.columns, self._format, self._name, file.partition, lenient=many)

    def _survey(self, surveyed: _Surveyed) -> _Surveyed:
        """Look into a file, and return it. Raises CorpusError if it cannot be read and must be."""
        try:
            with closing(self._reader_of(surveyed.file)) as reader:
                if not self._is_single or self.columns.carry_all:
                    reader.survey()
        except CorpusError as error:
            surveyed.problem = self._to_skip(error)
            return surveyed
        surveyed.size, surveyed.rows, surveyed.unit = reader.size, reader.num_rows, reader.unit
        surveyed.id_type, surveyed.is_told = reader.id_type, reader.num_rows is not None
        surveyed.fields = [field for field in reader.carried_fields if field.name not in reader.absent]
        return surveyed

    def _to_skip(self, error: CorpusError) -> CorpusError:
        """Return why a file, or the rest of one, is passed over. Raises it where nothing may be."""
        if not self._skip or self._is_single or isinstance(error, Unreachable):
            raise error
        return error

    def _fields_of_all(self, readable: list[_Surveyed]) -> list[pa.Field]:
        """Return the carried columns as all files can give them, in the order asked for, or of appearance."""
        found: dict[str, list[tuple[str, pa.Field]]] = {name: [] for name in self.columns.carried}
        for surveyed in readable:
            for field in surveyed.fields:
                found.setdefault(field.name, []).append((surveyed.place, field))
        for name in (name for name, there in found.items() if not there):
            raise CorpusError("carry", f"no file has a column {quoted(name)}", "name a column of the input")
        return [_common(name, there) for name, there in found.items()]

    def _ids_of_all(self, readable: list[_Surveyed]) -> tuple[pa.DataType | None, Id | None]:
        """Return the type of all ids, None if only rows tell it, and an id such as files without a schema may have."""
        name = self.columns.id
        if name is None:
            return (pa.int64() if self._is_single else pa.string()), None
        found = [(each.place, pa.field(name, each.id_type)) for each in readable if each.id_type is not None]
        if not found:
            return None, None
        kind = _common(name, found).type
        if not pa.types.is_integer(kind):
            return kind, ""
        if len(found) < len(readable) and kind != pa.uint64():
            kind = pa.int64()
        return kind, 1 << 63 if kind == pa.uint64() else -1

    def only(self, name: str) -> "Inputs":
        """Return the same, with the rows of a single file."""
        part = copy(self)
        part._files = {name: self._files[name]}
        return part

    def settle_ids(self) -> None:
        """Let the first row tell the type of ids that no file tells. Ids of other types are bad rows."""
        if self.id_type is None:
            with closing(copy(self)) as inputs:
                first = next((row.id for row in inputs.rows() if isinstance(row, Row)), "")
            is_large = isinstance(first, int) and first >= 1 << 63
            self.id_type = pa.string() if isinstance(first, str) else pa.uint64() if is_large else pa.int64()
            self._example_id = first if is_large or isinstance(first, str) else -1

    def rows(self, exact: bool = False) -> Iterator[Row | BadRow]:
        """Yield the rows of all files in order, from the beginning; `exact` as `Reader.rows` has it."""
        ids = IdKind(self._example_id)
        for surveyed in self._files.values():
            if surveyed.problem:
                yield BadRow(0, _without_place(surveyed.problem), surveyed.file.name)
            else:
                yield from self._rows(surveyed, exact, ids)

    def _rows(self, surveyed: _Surveyed, exact: bool, ids: IdKind) -> Iterator[Row | BadRow]:
        name, own_ids, last = surveyed.file.name, self.columns.id is None and not self._is_single, 0
        self.close()
        self._rows_read, self._current = 0, surveyed
        try:
            self._reader = self._reader_of(surveyed.file)
            if self._stopped:
                raise Stopped
            for row in self._reader.rows(exact, self.carried_fields, ids):
                self._rows_read, last = self._rows_read + 1, row.number
                if isinstance(row, BadRow):
                    yield BadRow(last, row.problem, name)
                else:
                    row_id = f"{name}#{last}" if own_ids else row.id
                    yield Row(last, row.text, row.title, row_id, row.carried, name)
        except CorpusError as error:
            yield BadRow(last + 1, f"the file is not read further: {_without_place(self._to_skip(error))}", name)
        surveyed.rows = self._rows_read

    def place(self, row: Row | BadRow) -> str:
        """Return how a message names a row."""
        surveyed = self._files[row.file]
        return f"{surveyed.place}, {surveyed.unit} {row.number}" if row.number else surveyed.place

    def expected(self) -> tuple[int, bool]:
        """Return how many rows all files have, and whether that is known: of files of text it is an estimate."""
        told = sum(each.rows or 0 for each in self._files.values() if each.is_told)
        others = [each for each in self._files.values() if not each.is_told and not each.problem]
        left = [each for each in others if each.rows is None]
        rows = sum(each.rows or 0 for each in others)
        left_bytes = float(sum(each.size for each in left))
        read_bytes = max(sum(each.size for each in others) - left_bytes, 1)
        if self._current in left and self._reader:
            now = self._reader.fraction() * self._current.size
            rows, left_bytes, read_bytes = rows + self._rows_read, left_bytes - now, read_bytes + now
        return told + rows + int(rows / read_bytes * left_bytes), not left

    def stop(self) -> None:
        """Let the thread that reads rows end soon, with an error that does not blame a file."""
        self._stopped = True
        if self._reader is not None:
            self._reader.stop()

    def close(self) -> None:
        """Close the file that is open."""
        if self._reader is not None:
            self._reader.close()


def _look_into(survey: Callable[[_Surveyed], _Surveyed], files: list[_Surveyed]) -> Iterator[_Surveyed]:
    if len(files) == 1 or not any("://" in each.file.path for each in files):
        yield from map(survey, files)
        return
    pool = ThreadPoolExecutor(SURVEYED_AT_ONCE)
    with idle_processes(SURVEYED_AT_ONCE):
        try:
            yield from pool.map(survey, files)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for the files under way


def _without_place(error: CorpusError) -> str:
    return str(CorpusError("", error.problem, error.remedy))


def _common(name: str, found: list[tuple[str, pa.Field]]) -> pa.Field:
    """Return a column's field of all files. Raises CorpusError naming two files whose types do not go together."""
    place, field = found[0]
    for other_place, other in found[1:]:
        if (both := common(field, other)) is None:
            here, there = (_words(each) for each in (other, field))
            remedy = "write the column as one type, or leave a file out"
            raise CorpusError(other_place, f"{label(name)}: its type is {here}, and {there} in {place}", remedy)
        place, field = (place if both.type == field.type else other_place), both
    return field


def _words(field: pa.Field) -> str:
    return "JSON" if field.metadata == AS_JSON else cut(str(field.type))
