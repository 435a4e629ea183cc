"""Read a file row by row: .txt, .jsonl, .csv, .parquet and .arrow, the first three also as .gz, .bz2, .xz and .zst.

A row that cannot be used comes out as a BadRow in its place, and the caller decides whether to go on. A file that
cannot be read further raises CorpusError.
"""

import io
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa

from corpus.arrow import UnfitValue, batch_rows, completed
from corpus.columnar import ColumnarFile
from corpus.columnar import Damaged as ColumnarDamaged
from corpus.comma_separated import csv_header, csv_rows
from corpus.limits import Limits
from corpus.lines import DECOMPRESSORS as DECOMPRESSORS
from corpus.lines import Damaged, Overlong, TooFarUnpacked, lines_of, window_problem
from corpus.rows import (
    NOTHING,
    BadRow,
    Columns,
    CorpusError,
    IdKind,
    Row,
    cut,
    decode,
    json_columns,
    listed,
    make_row,
    plain_json,
)
from corpus.sources import RemoteError, Unreachable, name_of, open_source, reason

FORMATS = {
    ".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow",
    ".arrows": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
COLUMNAR = ("parquet", "arrow")
# Keys of .jsonl that can be carried at once: each is a column of the output.
KEYS_MOST = 1_000
BOM = b"\xef\xbb\xbf"
AS_JSON = {b"encoding": b"json"}
"""Marks a carried column of .jsonl, which is kept as its JSON; the writers undo that."""


class UnknownFormat(CorpusError):
    """A file whose name does not end in a known format."""


class Stopped(Exception):
    """The reader was told to stop."""


class Reader:
    """A file, which `rows` reads from its beginning, as often as wanted.

    `path` is a local path or a URL that fsspec knows; the suffix names the format unless `file_format` does. Messages
    call the file `name`, or by its path. Columns that it lacks are taken from `partition`; with `lenient`, carried
    ones may be missing, and the caller surveys. Raises CorpusError for a file that cannot be opened, of unknown format,
    or without the columns.
    """

    def __init__(
        self,
        path: str,
        columns: Columns,
        file_format: str | None = None,
        name: str | None = None,
        partition: Mapping[str, str | None] = NOTHING,
        lenient: bool = False,
    ) -> None:
        self.path, self.columns, self.name = path, columns, name or path
        stem, dot, last = name_of(path).rpartition(".")
        self._packing = f".{last.lower()}" if f".{last.lower()}" in DECOMPRESSORS else ""
        suffix = f".{(stem.rpartition('.')[2] if self._packing else last).lower()}" if dot else ""
        self.file_format = file_format or FORMATS.get(suffix, "")
        self._partition, self._lenient = partition, lenient
        self._given: dict[str, str | None] = {**dict.fromkeys(columns.carried if lenient else ()), **partition}
        self._check_format()
        self._limits, self._stopped = Limits.of_settings(), threading.Event()
        self._raw = open_source(path, self.name)
        self.size = max(self._raw.seek(0, io.SEEK_END), 1)
        self._rows_read = self._rows_of_file = self._bytes_read = 0
        self._file = None
        if self.file_format in COLUMNAR:
            self._file = ColumnarFile(path, self.name, self.file_format, columns, self._given, self._limits)
        self.absent: set[str] = set()
        """Columns to carry that the file is known to lack."""
        self.unit = "row" if self._file is not None else "line"
        if self._file is not None:
            self._found(self._file.carried, self._file.schema.names)

    def _check_format(self) -> None:
        if self.file_format not in FORMATS.values():
            raise UnknownFormat(
                self.name,
                "the format is told by the end of the name, which must be .txt, .jsonl, .csv, .parquet or .arrow",
                "of the first three also .gz, .bz2, .xz or .zst after it",
            )
        lacking = {*self.columns.wanted()} - {"text"} - self._given.keys()
        if self.file_format == "txt" and lacking:
            problem, remedy = "a .txt file has no columns to name", "use .jsonl, .csv or .parquet for them"
            raise CorpusError(self.name, problem, remedy)
        if self.file_format in COLUMNAR and self._packing:
            problem = f"{self.file_format} is compressed by itself"
            raise CorpusError(self.name, problem, f"decompress the file and give it as .{self.file_format}")

    @property
    def num_rows(self) -> int | None:
        """How many rows the file says that it has; None if it does not say."""
        return None if self._file is None or self._file.num_rows < 0 else self._file.num_rows

    def survey(self) -> None:
        """Find out which of the columns the file has, those to carry too. Raises CorpusError for one that is missing.

        Of .jsonl this may read all lines, and of a file whose schema says it nothing.
        """
        if self.file_format == "csv":
            header = csv_header((line for _, line in self._lines()), self.place, self._limits)
            self._found(header, header)
            next(self.rows(), None)
        elif self.file_format == "jsonl":
            seen, wanted = self._find_columns(), self.columns.wanted()
            self._found([name for name in seen if "." not in name or name not in wanted], seen)
        elif self.file_format == "txt":
            self._found([], [])

    def _found(self, carried: Iterable[str], there: Iterable[str]) -> None:
        """Note which columns are carried if all are to be, and which are there."""
        self.columns = self.columns.carrying([*carried, *self._partition])
        self.absent = {*self.columns.carried} - {*there} - self._partition.keys()

    @property
    def id_type(self) -> pa.DataType | None:
        """The type of the ids; None if only the rows tell it."""
        name = self.columns.id
        return pa.int64() if name is None else None if self.file_format == "jsonl" else self._field(name).type

    @property
    def carried_fields(self) -> list[pa.Field]:
        """The field of each carried column, of type null if the file lacks it."""
        return [self._field(name) for name in self.columns.carried]

    def _field(self, name: str) -> pa.Field:
        if self._file is not None and name in self._file.schema.names:
            return self._file.schema.field(name)
        if name in self.absent:
            return pa.field(name, pa.null())
        return pa.field(name, pa.string(), metadata=AS_JSON if self.file_format == "jsonl" else None)

    def _find_columns(self) -> list[str]:
        """Read .jsonl until every wanted column has been seen, or for all columns to its end, and return those seen.

        Raises CorpusError if no row has one of them.
        """
        wanted, seen, first_keys = self.columns.wanted(), dict[str, None](), None
        for _, line in self._lines():
            try:
                values, _ = json_columns(_fit(line), self.columns)
            except ValueError:
                continue  # its place and problem are told when it is the row's turn
            first_keys = first_keys or self.columns.among(values, "key")
            seen |= dict.fromkeys(values)
            if len(seen) > KEYS_MOST and self.columns.carry_all:
                raise CorpusError(self.name, f"its rows have more than {KEYS_MOST:,} keys", "name those to carry")
            if not self.columns.carry_all and all(name in seen for name in wanted):
                return [*seen]
        missing = [name for name in wanted if name not in seen and name not in self._given]
        if first_keys is not None and missing:
            problem = f"no row has {listed(missing, len(missing))}"
            raise CorpusError(self.name, problem, f"the first has {first_keys}: name the column that holds it")
        return [*seen]

    def place(self, number: int) -> str:
        """Return how a message names a row of this file."""
        return f"{self.name}, {self.unit} {number}"

    def fraction(self) -> float:
        """Return how much of the file has been read, 0 to 1."""
        if self._rows_of_file:
            return self._rows_read / self._rows_of_file
        done = self._raw.tell() if self._packing and not self._raw.closed else self._bytes_read
        return min(1.0, done / self.size)

    def stop(self) -> None:
        """Let the thread that reads rows end soon, with an error that does not blame the file."""
        self._stopped.set()
        if self._file is not None:
            self._file.close()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._raw.close()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    def rows(
        self, exact: bool = False, fields: Sequence[pa.Field] = (), ids: IdKind | None = None
    ) -> Iterator[Row | BadRow]:
        """Yield every row of the file in order, from the beginning.

        With `exact`, for rows that will be written, values carried from .parquet are arrays of one value instead of
        Python's, and each column of .jsonl must be in some row. Carried values become those of `fields`, by default
        the file's own, and `ids` of a file without a schema must be of their kind. Raises CorpusError where the file
        cannot be read.
        """
        fields = fields or self.carried_fields
        if exact and self.file_format == "jsonl" and not self._lenient:
            self._find_columns()
        if self._file is not None:
            return self._columnar_rows(exact, fields)
        if self.file_format == "csv":
            lines = (line for _, line in self._lines())
            return csv_rows(lines, self.columns, self.place, self._limits, self._given)
        return self._line_rows(ids or IdKind(), [field.metadata != AS_JSON for field in fields])

    def _unreadable(self, number: int, error: Exception, remedy: str) -> CorpusError:
        if problem := window_problem(error, self._limits):
            return CorpusError(self.place(number), f"cannot be read further: {problem}")
        if isinstance(error, RemoteError):
            remedy = "run the same again, or download the file and name it"
            return Unreachable(self.place(number), f"cannot be read further: {cut(reason(error), 200)}", remedy)
        return CorpusError(self.place(number), f"cannot be read further: {cut(reason(error), 200)}", remedy)

    def _lines(self) -> Iterator[tuple[int, bytes | Overlong]]:
        """Yield each line with its number, without a byte order mark at the file's beginning."""
        number = 0
        self._raw.close()
        self._raw, self._bytes_read = open_source(self.path, self.name), 0
        try:
            lines = lines_of(self._raw, self._packing, self.size, self._limits, self._check)
            for number, line in enumerate(lines, 1):
                self._bytes_read += len(line) if isinstance(line, bytes) else self._limits.line_bytes
                yield number, (line.removeprefix(BOM) if number == 1 and isinstance(line, bytes) else line)
        except TooFarUnpacked as error:
            raise CorpusError(self.place(number + 1), str(error)) from None
        except (OSError, *Damaged) as error:
            raise self._unreadable(number + 1, error, "the file is damaged or not whole") from error

    def _line_rows(self, ids: IdKind, as_strings: list[bool]) -> Iterator[Row | BadRow]:
        """Yield the rows of .txt and .jsonl, a line each; carried JSON becomes a string where `as_strings` says so."""
        for number, line in self._lines():
            try:
                content = _fit(line)
                if self.file_format == "txt":
                    text = decode(content.removesuffix(b"\n").removesuffix(b"\r"))
                    values = {**self._given, "text": text}
                    yield make_row(self.columns, number, values, tuple(map(values.get, self.columns.carried)))
                    continue
                values, stands = json_columns(content, self.columns, self._given)
                if any(as_strings):
                    stands = tuple(map(lambda json, plain: plain_json(json) if plain else json, stands, as_strings))
                row = make_row(self.columns, number, values, stands)
                if self.columns.id is not None:
                    ids.check(row.id, self.columns.id, self.columns)
                yield row
            except ValueError as error:
                yield BadRow(number, str(error))

    def _columnar_rows(self, exact: bool, fields: Sequence[pa.Field]) -> Iterator[Row | BadRow]:
        assert self._file is not None
        self._rows_read, self._rows_of_file, unfolded = 0, max(self._file.num_rows, 0), 0
        try:
            for batch in self._file.batches():
                self._check()
                first = self._rows_read + 1
                self._rows_read += 1 if batch is None else batch.num_rows
                if batch is None:
                    yield BadRow(first, self._limits.too_long("the row"))
                    continue
                unfolded += batch.nbytes
                if unfolded > self._limits.unpacked_bytes(self.size):
                    raise CorpusError(self.place(first), self._limits.too_far_unpacked(self.size))
                whole = completed(batch, self.columns, fields, self._given)
                yield from batch_rows(whole, self.columns, first, exact)
        except (ColumnarDamaged, RemoteError) as error:
            self._check()
            remedy = "the file is damaged: copy or write it anew"
            raise self._unreadable(self._rows_read + 1, error, remedy) from error
        except UnfitValue as error:
            raise CorpusError(self.place(first), str(error), "convert the files to a type that holds all") from error


def _fit(line: bytes | Overlong) -> bytes:
    """Return a line. Raises ValueError for an overlong one."""
    if isinstance(line, Overlong):
        raise ValueError(line.problem)
    return line
