"""Read a corpus row by row: .txt, .jsonl, .csv and .parquet, the first three also as .gz, .bz2, .xz and .zst.

A row that cannot be used comes out as a BadRow in its place, and the caller decides whether to go on. A file that
cannot be read further raises CorpusError.
"""

import io
import threading
from collections.abc import Iterator

import pyarrow as pa

from corpus.arrow import batch_rows, plain_fields
from corpus.comma_separated import csv_rows
from corpus.limits import Limits
from corpus.lines import DECOMPRESSORS as DECOMPRESSORS
from corpus.lines import Damaged, Overlong, TooFarUnpacked, lines_of, window_problem
from corpus.parquet import Damaged as ParquetDamaged
from corpus.parquet import ParquetFile
from corpus.rows import BadRow, Columns, CorpusError, IdKind, Row, cut, decode, json_columns, listed, make_row
from corpus.sources import RemoteError, name_of, open_source, reason
from texts.checks import check_text

FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
BOM = b"\xef\xbb\xbf"
AS_JSON = {b"encoding": b"json"}
"""Marks a carried column of .jsonl, which is kept as its JSON; the writers undo that."""


class UnknownFormat(CorpusError):
    """A file whose name does not end in a known format."""


class Stopped(Exception):
    """The reader was told to stop."""


class Reader:
    """A corpus file, which `rows` reads from its beginning, as often as wanted.

    `path` is a local path or a URL that fsspec knows; the suffix names the format unless `file_format` does. Messages
    call the file `name`, or by its path. Raises CorpusError for a file that cannot be opened, of unknown format, or
    without the columns.
    """

    def __init__(self, path: str, columns: Columns, file_format: str | None = None, name: str | None = None) -> None:
        self.path, self.columns, self.name = path, columns, name or path
        stem, dot, last = name_of(path).rpartition(".")
        self._packing = f".{last.lower()}" if f".{last.lower()}" in DECOMPRESSORS else ""
        suffix = f".{(stem.rpartition('.')[2] if self._packing else last).lower()}" if dot else ""
        self.file_format = file_format or FORMATS.get(suffix, "")
        if self.file_format not in FORMATS.values():
            raise UnknownFormat(
                self.name,
                "the format is told by the end of the name, which must be .txt, .jsonl, .csv or .parquet",
                "of the first three also .gz, .bz2, .xz or .zst after it",
            )
        if self.file_format == "txt" and columns.wanted() != ["text"]:
            problem, remedy = "a .txt file has no columns to name", "use .jsonl, .csv or .parquet for them"
            raise CorpusError(self.name, problem, remedy)
        if self.file_format == "parquet" and self._packing:
            problem, remedy = "parquet is compressed by itself", "decompress the file and give it as .parquet"
            raise CorpusError(self.name, problem, remedy)
        self._limits, self._stopped = Limits.of_settings(), threading.Event()
        self._raw = open_source(path, self.name)
        self._size = max(self._raw.seek(0, io.SEEK_END), 1)
        self._rows_read = self._rows_of_file = 0
        self._parquet = self._open_parquet() if self.file_format == "parquet" else None
        self.id_type, self.carried_fields = self._fields()

    def _open_parquet(self) -> ParquetFile:
        return ParquetFile(self.path, self.name, self.columns, self._limits)

    def _fields(self) -> tuple[pa.DataType | None, list[pa.Field]]:
        """Return the Arrow type of the ids, None if only the rows tell it, and the field of each carried column."""
        columns = self.columns
        if self._parquet is not None:
            id_field, *carried = plain_fields(self._parquet.schema, columns)
            return id_field.type, carried
        is_json = self.file_format == "jsonl"
        id_type = pa.int64() if columns.id is None else None if is_json else pa.string()
        metadata = AS_JSON if is_json else None
        return id_type, [pa.field(name, pa.string(), metadata=metadata) for name in columns.carried]

    def _find_columns(self) -> None:
        """Read .jsonl until every wanted column has been seen. Raises CorpusError if no row has one of them."""
        self._raw.seek(0)
        missing, first_keys = self.columns.wanted(), None
        for _, line in self._lines():
            try:
                values, _ = json_columns(_fit(line), self.columns)
            except ValueError:
                continue  # its place and problem are told when it is the row's turn
            first_keys = first_keys or self.columns.among(values, "key")
            missing = [name for name in missing if name not in values]
            if not missing:
                return
        if first_keys is not None:
            problem = f"no row has {listed(missing, len(missing))}"
            raise CorpusError(self.name, problem, f"the first has {first_keys}: name the column that holds it")

    def place(self, number: int) -> str:
        """Return how a message names a row of this file."""
        return f"{self.name}, {'row' if self.file_format == 'parquet' else 'line'} {number}"

    def fraction(self) -> float:
        """Return how much of the file has been read, 0 to 1."""
        if self._rows_of_file:
            return self._rows_read / self._rows_of_file
        return 1.0 if self._raw.closed else min(1.0, self._raw.tell() / self._size)

    def stop(self) -> None:
        """Let the thread that reads rows end soon, with an error that does not blame the file."""
        self._stopped.set()
        if self._parquet is not None:
            self._parquet.close()

    def close(self) -> None:
        """Close the file."""
        if self._parquet is not None:
            self._parquet.close()
        self._raw.close()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    def rows(self, exact: bool = False) -> Iterator[Row | BadRow]:
        """Yield every row of the file in order, from the beginning.

        With `exact`, for rows that will be written, values carried from .parquet are arrays of one value instead of
        Python's, and each column of .jsonl must be in some row. Raises CorpusError where the file cannot be read.
        """
        if exact and self.file_format == "jsonl":
            self._find_columns()
        self._raw.close()
        self._raw = open_source(self.path, self.name)
        if self.file_format == "parquet":
            return self._parquet_rows(exact)
        if self.file_format == "csv":
            return csv_rows((line for _, line in self._lines()), self.columns, self.place, self._limits)
        return self._line_rows()

    def _unreadable(self, number: int, error: Exception, remedy: str) -> CorpusError:
        if problem := window_problem(error, self._limits):
            return CorpusError(self.place(number), f"cannot be read further: {problem}")
        if isinstance(error, RemoteError):
            remedy = "run the same again, or download the file and name it"
        return CorpusError(self.place(number), f"cannot be read further: {cut(reason(error), 200)}", remedy)

    def _lines(self) -> Iterator[tuple[int, bytes | Overlong]]:
        """Yield each line with its number, without a byte order mark at the file's beginning."""
        number = 0
        try:
            lines = lines_of(self._raw, self._packing, self._size, self._limits, self._check)
            for number, line in enumerate(lines, 1):
                yield number, (line.removeprefix(BOM) if number == 1 and isinstance(line, bytes) else line)
        except TooFarUnpacked as error:
            raise CorpusError(self.place(number + 1), str(error)) from None
        except (OSError, *Damaged) as error:
            raise self._unreadable(number + 1, error, "the file is damaged or not whole") from error

    def _line_rows(self) -> Iterator[Row | BadRow]:
        """Yield the rows of .txt and .jsonl, a line each."""
        id_kind, id_column = IdKind(), self.columns.id
        for number, line in self._lines():
            try:
                content = _fit(line)
                if self.file_format == "txt":
                    text = decode(content.removesuffix(b"\n").removesuffix(b"\r"))
                    yield Row(number, check_text(text, "text"), None, number)
                    continue
                row = make_row(self.columns, number, *json_columns(content, self.columns))
                if id_column is not None:
                    id_kind.check(row.id, id_column, self.columns)
                yield row
            except ValueError as error:
                yield BadRow(number, str(error))

    def _parquet_rows(self, exact: bool) -> Iterator[Row | BadRow]:
        assert self._parquet is not None
        if self._parquet.is_begun:
            self._parquet.close()
            self._parquet = self._open_parquet()
        file = self._parquet
        self._rows_read, self._rows_of_file, unfolded = 0, file.num_rows, 0
        try:
            for batch in file.batches():
                self._check()
                if batch is None:
                    yield BadRow(self._rows_read + 1, self._limits.too_long("the row"))
                    self._rows_read += 1
                    continue
                unfolded += batch.nbytes
                if unfolded > self._limits.unpacked_bytes(self._size):
                    raise CorpusError(self.place(self._rows_read + 1), self._limits.too_far_unpacked(self._size))
                yield from batch_rows(batch, self.columns, self._rows_read + 1, exact)
                self._rows_read += batch.num_rows
        except (ParquetDamaged, RemoteError) as error:
            self._check()
            remedy = "the file is damaged: copy or write it anew"
            raise self._unreadable(self._rows_read + 1, error, remedy) from error


def _fit(line: bytes | Overlong) -> bytes:
    """Return a line. Raises ValueError for an overlong one."""
    if isinstance(line, Overlong):
        raise ValueError(line.problem)
    return line
