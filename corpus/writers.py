"""Rows with vectors to one file: .parquet, .npy or .jsonl.

The file appears under its name by one rename, when it is whole. Written twice from the same rows it has the same bytes.
"""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus.arrow import for_json, in_utc
from corpus.compute import OutputRows, VectorsOf, output_rows, unfit_rows, vector_array
from corpus.readers import AS_JSON
from corpus.rows import BadRow, CorpusError
from corpus.shards import lock_path
from texts.options import Options

OUTPUT_FORMATS = ("parquet", "npy", "jsonl")


def check_output(output: Path) -> str:
    """Return the output's format. Raises CorpusError when the file is there already, or cannot be there."""
    output_format = output.suffix.removeprefix(".")
    if output_format not in OUTPUT_FORMATS:
        raise CorpusError(f"{output}: the output's format is {output_format!r}; name a .parquet, .npy or .jsonl file")
    try:
        if not output.parent.is_dir():
            raise CorpusError(f"{output}: there is no folder {output.parent}; make it first")
        _check_names(output)
        if output.exists():
            raise CorpusError(f"{output}: the file is there already; delete it, or name another")
        if not os.access(output.parent, os.W_OK | os.X_OK):
            raise CorpusError(f"{output}: nothing may be written in {output.parent}; name another folder")
    except OSError as error:
        raise CorpusError(f"{output}: cannot be written: {error.strerror or error}; name another") from error
    return output_format


def _check_names(output: Path) -> None:
    """Raise CorpusError where a file that is beside the output, at least for a time, would have too long a name."""
    beside = [_partial(output), _partial(side_file(output, "skipped.jsonl")), lock_path(output)]
    if output.suffix == ".npy":
        beside.append(_partial(side_file(output, "rows.parquet")))
    longest = max(len(os.fsencode(path.name)) for path in beside)
    if longest > (limit := os.pathconf(output.parent, "PC_NAME_MAX")):
        raise CorpusError(
            f"{output}: the name is too long by {longest - limit} bytes, as files beside it have up to {longest} and "
            f"{limit} are the most there; shorten it"
        )


def check_carried(output: Path, fields: Sequence[pa.Field]) -> None:
    """Raise CorpusError for a carried column that the output's format cannot hold."""
    for field in fields if output.suffix == ".jsonl" else ():
        try:
            _json_table(pa.table([pa.nulls(0, field.type)], schema=pa.schema([field]))).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            raise CorpusError(
                f"{field.name}: its type {field.type} does not go into .jsonl: {error}; name a .parquet output"
            ) from error


def side_file(output: Path, kind: str) -> Path:
    """Return the path of a file beside the output: vectors.parquet's `skipped.jsonl` is vectors.skipped.jsonl."""
    return output.with_name(f"{output.stem}.{kind}")


class ParquetWriter:
    """.parquet: `embedding` is a fixed-size list of the precision's numbers; the metadata says what they are."""

    def __init__(
        self, file: BinaryIO, first: OutputRows, metadata: Mapping[str, str], with_vectors: bool = True
    ) -> None:
        self._with_vectors = with_vectors
        schema = self._table(first).schema.with_metadata(metadata)
        # Parquet has no bytes but by a dictionary of the 256; floats have no two alike and do not shrink.
        is_bytes = first.vectors.dtype.itemsize == 1
        dictionary = [field.name for field in schema if field.name != "embedding"]
        compression = dict.fromkeys(dictionary, "zstd")
        if with_vectors:
            dictionary += ["embedding.list.element"] if is_bytes else []
            compression["embedding.list.element"] = "zstd" if is_bytes else "none"
        self._writer = pq.ParquetWriter(
            file, schema, compression=compression, use_dictionary=dictionary, write_statistics=["id"]
        )

    def _table(self, rows: OutputRows) -> pa.Table:
        table = rows.table
        for i, field in enumerate(table.schema):
            if field.metadata == AS_JSON:
                texts = [_plain(value) for value in table.column(i).to_pylist()]
                table = table.set_column(i, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
        if self._with_vectors:
            vectors = vector_array(rows.vectors)
            table = table.add_column(1, pa.field("embedding", vectors.type, nullable=False), vectors)
        return table

    def write(self, rows: OutputRows) -> None:
        """Raises CorpusError for ids that do not fit the type of those before them."""
        table, id_type = self._table(rows), self._writer.schema.field("id").type
        if table["id"].type != id_type:
            try:
                table = table.set_column(0, pa.field("id", id_type), table["id"].cast(id_type))
            except pa.ArrowInvalid as error:
                raise CorpusError(
                    f"id: {error}, and ids before it are of type {id_type}; write all ids as strings"
                ) from error
        self._writer.write_table(table)

    def close(self) -> None:
        self._writer.close()


class NumpyWriter:
    """.npy: [rows, width], which numpy.load(mmap_mode="r") maps; written from front to back, the header once more last.

    It is not written through a mapping, as a full disk would then end the process without a word.
    """

    def __init__(self, file: BinaryIO, first: OutputRows) -> None:
        self._file, self._dtype = file, first.vectors.dtype
        self._rows, self._width = 0, first.vectors.shape[1]
        self._write_header()

    def _write_header(self) -> None:
        """Write the header, whose length numpy makes the same for any number of rows."""
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header: dict[str, Any] = {"descr": descr, "fortran_order": False, "shape": (self._rows, self._width)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, rows: OutputRows) -> None:
        self._file.write(np.ascontiguousarray(rows.vectors).data)
        self._rows += len(rows.vectors)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header()


class JsonLinesWriter:
    """.jsonl: an object a line, carried columns as they were in a .jsonl input.

    Of other inputs times become ISO 8601, durations numbers of their unit, decimals strings, and bytes base64. NaN and
    infinities become null, as JSON has no numbers for them.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: OutputRows) -> None:
        as_json = [field.name for field in rows.table.schema if field.metadata == AS_JSON]
        for values, vector in zip(_json_table(rows.table).to_pylist(), rows.vectors, strict=True):
            for name in as_json:
                values[name] = None if values[name] is None else orjson.Fragment(values[name])
            line = {"id": values.pop("id"), "embedding": vector, **values}
            self._file.write(orjson.dumps(line, default=_base64, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    def close(self) -> None:
        pass  # a line is whole by itself


def _json_table(table: pa.Table) -> pa.Table:
    """Return a table whose Python values are JSON but for bytes. Raises ArrowException where a type has none."""
    for step in (in_utc, for_json):
        table = table.cast(pa.schema([field.with_type(step(field.type)) for field in table.schema]))
    return table


def _base64(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return base64.b64encode(value).decode()


Writer = ParquetWriter | NumpyWriter | JsonLinesWriter
"""Takes the output piece by piece; `close` writes what belongs to the file's end, and leaves the file open."""


class OutputFiles:
    """An output and the files beside it, in a with block; all appear under their names when `finish` is called.

    Without `finish` nothing stays. With .npy everything but the vectors is in `side_file(output, "rows.parquet")`,
    unless `rows_beside` is false. Methods raise OSError, as on a full disk.
    """

    def __init__(self, output: Path, model: str, options: Options, rows_beside: bool = True) -> None:
        """Raises CorpusError when the output is there already, or cannot be there."""
        self._format = check_output(output)
        self._output, self._rows_beside = output, rows_beside
        self._metadata = {"model": model, **options.described()}
        self._with_ranges = options.chunking is not None
        self._files: dict[Path, BinaryIO] = {}
        self._writers: list[Writer] = []
        self.skipped = 0
        """How many rows were skipped."""
        self.prompted = 0
        """How many vectors are of texts that began with one of the model's prompts."""
        self._first_unfit: BadRow | None = None

    def __enter__(self) -> "OutputFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete what has not been finished."""
        for writer in self._writers:
            with suppress(OSError, ValueError):  # its file is closed, or full
                writer.close()
        for path, file in self._files.items():
            with suppress(OSError):
                file.close()
            _partial(path).unlink(missing_ok=True)

    def write_block(self, rows: pa.Table, vectors_of: VectorsOf) -> list[BadRow]:
        """Append a block's rows that have a vector, and return those that have none."""
        for part in output_rows(rows, vectors_of, self._with_ranges):
            self._writers = self._writers or self._open_writers(part)
            for writer in self._writers:
                writer.write(part)
            self.prompted += pc.sum(part.table["prompted"]).as_py()
        unfit = unfit_rows(rows, vectors_of)
        self._first_unfit = self._first_unfit or next(iter(unfit), None)
        return unfit

    def skip(self, row: BadRow) -> None:
        """List a row that has no vector in `side_file(output, "skipped.jsonl")`."""
        path = side_file(self._output, "skipped.jsonl")
        line = json.dumps({"number": row.number, "problem": row.problem}, ensure_ascii=False)
        (self._files.get(path) or self._open(path)).write(f"{line}\n".encode())
        self.skipped += 1

    def finish(self) -> None:
        """Put the files in their places. Raises CorpusError when there is no vector at all."""
        if not self._writers:
            first = self._first_unfit
            why = f"; the first, number {first.number}: {first.problem}" if first else ", or the input has none"
            raise CorpusError(f"{self._output}: not written, as no row of the input has a vector{why}")
        for writer in self._writers:
            writer.close()
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        for path in sorted(self._files, key=self._output.__eq__):  # when the output is there, all is
            _partial(path).rename(path)
        self._files, self._writers = {}, []

    def _open(self, path: Path) -> BinaryIO:
        self._files[path] = _partial(path).open("wb")
        return self._files[path]

    def _open_writers(self, first: OutputRows) -> list[Writer]:
        file = self._open(self._output)
        if self._format == "parquet":
            return [ParquetWriter(file, first, self._metadata)]
        if self._format == "jsonl":
            return [JsonLinesWriter(file)]
        writers: list[Writer] = [NumpyWriter(file, first)]
        if self._rows_beside:
            rows_file = self._open(side_file(self._output, "rows.parquet"))
            writers.append(ParquetWriter(rows_file, first, self._metadata, with_vectors=False))
        return writers


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _plain(value: str | None) -> str | None:
    """Return a JSON string as itself and any other JSON as its text."""
    return json.loads(value) if value is not None and value.startswith('"') else value
