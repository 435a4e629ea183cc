"""Read a corpus a row at a time: .txt, .jsonl, .csv and .parquet, the first three also as .gz, .bz2, .xz and .zst.

A row that cannot be used comes out as a BadRow in its place, and the caller decides whether to go on. A file that
cannot be read further raises CorpusError.
"""

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, cast

import fsspec
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.rows import BadRow, Columns, CorpusError, Row, decode, json_object, make_row, not_utf8
from texts.checks import check_text

FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda file: io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd")),
}
# A quote that is never closed makes the rest of a .csv one field; this ends it. A text of 10 MB is far below.
MAX_CSV_FIELD_CHARS = 1 << 28
PARQUET_BATCH_ROWS = 256
BOM = b"\xef\xbb\xbf"
# Marks a carried column of .jsonl, which is kept as its JSON; the writers undo that.
AS_JSON = {b"encoding": b"json"}


class UnknownFormat(CorpusError):
    """A file whose name does not end in a known format."""


class Reader:
    """One corpus file, which `rows` reads from its beginning, as often as wanted.

    `path` is a local path or a URL that fsspec knows; the suffix names the format unless `file_format` does. Raises
    CorpusError for a file that cannot be opened, of unknown format, or without the columns.
    """

    def __init__(self, path: str, columns: Columns, file_format: str | None = None) -> None:
        self.path, self.columns = path, columns
        stem, dot, last = path.rpartition(".")
        self._decompress = DECOMPRESSORS.get(f".{last.lower()}")
        suffix = f".{(stem if self._decompress else path).rpartition('.')[2].lower()}" if dot else ""
        self.file_format = file_format or FORMATS.get(suffix, "")
        if self.file_format not in FORMATS.values():
            raise UnknownFormat(
                f"{path}: the format is told by the end of the name, which must be .txt, .jsonl, .csv or .parquet; "
                "of the first three also .gz, .bz2, .xz or .zst after it"
            )
        if self.file_format == "txt" and columns.wanted() != ["text"]:
            raise CorpusError(f"{path}: a .txt file has no columns to name; use .jsonl, .csv or .parquet for them")
        if self.file_format == "parquet" and self._decompress:
            raise CorpusError(f"{path}: parquet is compressed by itself; decompress the file and give it as .parquet")
        self._raw = self._open()
        self._size = max(self._raw.seek(0, io.SEEK_END), 1)
        self._rows_read = self._rows_of_file = 0
        self.carried_fields = self._carried_fields()

    def _open(self) -> BinaryIO:
        try:
            if "://" in self.path:
                return cast(BinaryIO, fsspec.open(self.path, "rb").open())
            return open(self.path, "rb")
        except (OSError, ImportError, ValueError) as error:
            raise CorpusError(f"{self.path}: cannot be opened: {error}; check the path") from error

    def _carried_fields(self) -> list[pa.Field]:
        """Return name and Arrow type of each carried column."""
        if self.file_format == "parquet":
            schema = self._parquet().schema_arrow
            return [schema.field(name) for name in self.columns.carried]
        metadata = AS_JSON if self.file_format == "jsonl" else None
        return [pa.field(name, pa.string(), metadata=metadata) for name in self.columns.carried]

    def place(self, number: int) -> str:
        """Return how a message names a row of this file."""
        return f"{self.path}, {'row' if self.file_format == 'parquet' else 'line'} {number}"

    def fraction(self) -> float:
        """Return how much of the file has been read, 0 to 1."""
        if self._rows_of_file:
            return self._rows_read / self._rows_of_file
        return 1.0 if self._raw.closed else min(1.0, self._raw.tell() / self._size)

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def rows(self) -> Iterator[Row | BadRow]:
        """Yield every row of the file in order, from the beginning. Raises CorpusError where it cannot be read."""
        self._raw.close()
        self._raw = self._open()
        readers = {
            "txt": self._txt_rows,
            "jsonl": self._jsonl_rows,
            "csv": self._csv_rows,
            "parquet": self._parquet_rows,
        }
        return readers[self.file_format]()

    def _unreadable(self, number: int, error: Exception, remedy: str) -> CorpusError:
        return CorpusError(f"{self.place(number)}: cannot be read further: {error}; the file is damaged{remedy}")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield each line with its number, without a byte order mark at the file's beginning."""
        file = self._decompress(self._raw) if self._decompress else self._raw
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield number, (line.removeprefix(BOM) if number == 1 else line)
        except (OSError, EOFError, lzma.LZMAError, pa.ArrowException) as error:
            raise self._unreadable(number + 1, error, " or not whole") from error

    def _txt_rows(self) -> Iterator[Row | BadRow]:
        for number, line in self._lines():
            try:
                text = check_text(decode(line.removesuffix(b"\n").removesuffix(b"\r")), "text")
                yield Row(number, text, None, number)
            except ValueError as error:
                yield BadRow(number, str(error))

    def _jsonl_rows(self) -> Iterator[Row | BadRow]:
        id_type: type | None = None
        for number, line in self._lines():
            try:
                row = make_row(self.columns, number, json_object(line), id_type)
                id_type = type(row.id)
                carried = (None if value is None else orjson.dumps(value).decode() for value in row.carried)
                yield replace(row, carried=tuple(carried))
            except ValueError as error:
                yield BadRow(number, str(error))

    def _csv_rows(self) -> Iterator[Row | BadRow]:
        csv.field_size_limit(MAX_CSV_FIELD_CHARS)
        lines = (line.decode("utf-8", "surrogateescape") for _, line in self._lines())
        table = csv.reader(lines, strict=True)
        try:
            header = next(table, [])
        except csv.Error as error:
            raise CorpusError(f"{self.place(1)}: the header is not CSV: {error}") from error
        self._check_columns(header)
        while True:
            number = table.line_num + 1  # a quoted field may span lines: the row is named by its first
            try:
                fields = next(table, None)
            except csv.Error as error:
                yield BadRow(number, f"not CSV: {error}; a quote in a quoted field is written twice")
                continue
            if fields is None:
                return
            yield self._csv_row(number, header, fields)

    def _csv_row(self, number: int, header: list[str], fields: list[str]) -> Row | BadRow:
        try:
            if len(fields) != len(header):
                raise ValueError(
                    f"{len(fields)} fields, and the header has {len(header)}; put fields with commas in quotes"
                )
            values = {name: _utf8(fields[header.index(name)], name) for name in self.columns.wanted()}
            return make_row(self.columns, number, values)
        except ValueError as error:
            return BadRow(number, str(error))

    def _check_columns(self, present: list[str]) -> None:
        for name in self.columns.wanted():
            if name not in present:
                raise CorpusError(
                    f"{self.place(1)}: no column {name!r} among {', '.join(map(repr, present)) or 'no columns'}; "
                    "name the column that holds it"
                )

    def _parquet(self) -> pq.ParquetFile:
        try:
            file = pq.ParquetFile(self._raw, pre_buffer=False, buffer_size=1 << 20)
        except (OSError, pa.ArrowException) as error:
            raise CorpusError(
                f"{self.path}: not a whole parquet file: {error}; its end, which says what it holds, is missing or "
                "damaged: copy or write it anew"
            ) from error
        self._check_columns(file.schema_arrow.names)
        if self.columns.id is not None:
            kind = file.schema_arrow.field(self.columns.id).type
            if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise CorpusError(f"{self.path}: {self.columns.id}: it is {kind}; ids are whole numbers or strings")
        return file

    def _parquet_rows(self) -> Iterator[Row | BadRow]:
        file = self._parquet()
        self._rows_read, self._rows_of_file = 0, file.metadata.num_rows
        number = 0
        try:
            for batch in file.iter_batches(PARQUET_BATCH_ROWS, columns=self.columns.wanted(), use_threads=False):
                for i in range(batch.num_rows):
                    number += 1
                    yield self._parquet_row(number, batch, i)
                self._rows_read = number
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(number + 1, error, ": copy or write it anew") from error

    def _parquet_row(self, number: int, batch: pa.RecordBatch, i: int) -> Row | BadRow:
        try:
            values = {}
            for name in batch.schema.names:
                try:
                    values[name] = batch.column(name)[i].as_py()
                except UnicodeDecodeError as error:
                    raise ValueError(f"{name}: {not_utf8(error)}") from None
            return make_row(self.columns, number, values)
        except ValueError as error:
            return BadRow(number, str(error))


def _utf8(value: str, column: str) -> str:
    """Return the value, which was decoded with surrogateescape. Raises ValueError when it was not UTF-8."""
    try:
        return value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{column}: {not_utf8(error)}") from None
