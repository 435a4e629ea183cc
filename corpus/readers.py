"""Read a corpus a row at a time: .txt, .jsonl, .csv and .parquet, the first three also as .gz, .bz2, .xz and .zst.

A row that cannot be used comes out as a BadRow in its place, and the caller decides whether to go on. A file that
cannot be read further raises CorpusError.
"""

import io
from collections.abc import Iterator

import pyarrow as pa

from corpus import parquet
from corpus.arrow import batch_rows, plain_fields
from corpus.comma_separated import csv_rows
from corpus.rows import BadRow, Columns, CorpusError, IdKind, Row, decode, json_columns, make_row
from corpus.sources import RemoteError, name_of, open_source, reason
from corpus.streams import DECOMPRESSORS as DECOMPRESSORS
from corpus.streams import Damaged
from texts.checks import check_text

FORMATS = {".txt": "txt", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
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
        stem, dot, last = name_of(path).rpartition(".")
        self._decompress = DECOMPRESSORS.get(f".{last.lower()}")
        suffix = f".{(stem.rpartition('.')[2] if self._decompress else last).lower()}" if dot else ""
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
        self._raw = open_source(path)
        self._size = max(self._raw.seek(0, io.SEEK_END), 1)
        self._rows_read = self._rows_of_file = 0
        self.id_type, self.carried_fields = self._fields()

    def _fields(self) -> tuple[pa.DataType | None, list[pa.Field]]:
        """Return the Arrow type of the ids, None where only the rows tell, and the field of each carried column."""
        columns, metadata = self.columns, None
        if self.file_format == "parquet":
            schema = parquet.open_file(self.path, self._raw, columns).schema_arrow
            id_field, *carried = plain_fields(schema, columns)
            return id_field.type, carried
        if self.file_format == "jsonl":
            metadata = AS_JSON
        kinds = {"csv": pa.string(), "jsonl": None}
        id_type = pa.int64() if columns.id is None else kinds[self.file_format]
        return id_type, [pa.field(name, pa.string(), metadata=metadata) for name in columns.carried]

    def _find_columns(self) -> None:
        """Read .jsonl up to where every wanted column has been seen. Raises CorpusError where no row has one."""
        self._raw.seek(0)
        missing, first_keys = self.columns.wanted(), None
        for _, line in self._lines():
            try:
                values, _ = json_columns(line, self.columns)
            except ValueError:
                continue  # its place and problem are told when it is the row's turn
            first_keys = first_keys or list(values)
            missing = [name for name in missing if name not in values]
            if not missing:
                return
        if first_keys is not None:
            raise CorpusError(
                f"{self.path}: no row has {' and '.join(map(repr, missing))}; the first has "
                f"{', '.join(map(repr, first_keys)) or 'no keys'}: name the column that holds it"
            )

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

    def rows(self, exact: bool = False) -> Iterator[Row | BadRow]:
        """Yield every row of the file in order, from the beginning.

        With `exact`, for what is to be written, values that are carried from .parquet are arrays of one value each
        instead of Python's, and .jsonl must have each column in some row. Raises CorpusError where it cannot be read.
        """
        if exact and self.file_format == "jsonl":
            self._find_columns()
        self._raw.close()
        self._raw = open_source(self.path)
        if self.file_format == "parquet":
            return self._parquet_rows(exact)
        return {"txt": self._txt_rows, "jsonl": self._jsonl_rows, "csv": self._csv_rows}[self.file_format]()

    def _unreadable(self, number: int, error: Exception, remedy: str) -> CorpusError:
        damaged = f"the file is damaged{remedy}"
        if isinstance(error, RemoteError):
            damaged = "run the same again, or download the file and name it"
        return CorpusError(f"{self.place(number)}: cannot be read further: {reason(error)}; {damaged}")

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield each line with its number, without a byte order mark at the file's beginning."""
        file = self._decompress(self._raw) if self._decompress else self._raw
        number = 0
        try:
            for number, line in enumerate(file, 1):
                yield number, (line.removeprefix(BOM) if number == 1 else line)
        except (OSError, *Damaged) as error:
            raise self._unreadable(number + 1, error, " or not whole") from error

    def _txt_rows(self) -> Iterator[Row | BadRow]:
        for number, line in self._lines():
            try:
                text = check_text(decode(line.removesuffix(b"\n").removesuffix(b"\r")), "text")
                yield Row(number, text, None, number)
            except ValueError as error:
                yield BadRow(number, str(error))

    def _jsonl_rows(self) -> Iterator[Row | BadRow]:
        id_kind = IdKind()
        for number, line in self._lines():
            try:
                values, carried = json_columns(line, self.columns)
                row = make_row(self.columns, number, values, carried)
                if self.columns.id is not None:
                    id_kind.check(row.id, self.columns.id)
                yield row
            except ValueError as error:
                yield BadRow(number, str(error))

    def _csv_rows(self) -> Iterator[Row | BadRow]:
        return csv_rows((line for _, line in self._lines()), self.columns, self.place)

    def _parquet_rows(self, exact: bool) -> Iterator[Row | BadRow]:
        file = parquet.open_file(self.path, self._raw, self.columns)
        self._rows_read, self._rows_of_file = 0, file.metadata.num_rows
        try:
            for batch in parquet.batches(file, self.columns):
                yield from batch_rows(batch, self.columns, self._rows_read + 1, exact)
                self._rows_read += batch.num_rows
        except MemoryError:
            raise
        except parquet.Damaged as error:
            raise self._unreadable(self._rows_read + 1, error, ": copy or write it anew") from error
