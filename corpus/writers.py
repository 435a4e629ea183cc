"""The output's formats: rows with vectors to .parquet, .arrow, .npy or .jsonl. The same rows give the same bytes."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.arrow import for_json, in_utc
from corpus.output_rows import OutputRows, vector_array
from corpus.readers import AS_JSON
from corpus.rows import CorpusError, plain_json


def check_carried(output: Path, fields: Sequence[pa.Field]) -> None:
    """Raise CorpusError for a carried column that the output's format cannot hold."""
    for field in fields if output.suffix == ".jsonl" else ():
        try:
            _json_table(pa.table([pa.nulls(0, field.type)], schema=pa.schema([field]))).to_pylist()
        except (pa.ArrowException, ValueError) as error:
            problem = f"its type {field.type} does not go into .jsonl: {error}"
            raise CorpusError(field.name, problem, "name a .parquet output") from error


class TableWriter:
    """.parquet or .arrow: `embedding` is a fixed-size list of the precision's numbers; the metadata says what they are.

    Arrow's IPC file is not compressed, so that it can be memory-mapped.
    """

    def __init__(
        self,
        file: BinaryIO,
        first: OutputRows,
        metadata: Mapping[str, str],
        as_parquet: bool = True,
        with_vectors: bool = True,
    ) -> None:
        self._as_parquet, self._with_vectors = as_parquet, with_vectors
        schema = _table(first, with_vectors).schema.with_metadata(metadata)
        self._id_type = schema.field("id").type
        # Parquet stores single bytes only by a dictionary of their 256 values; floats are all different.
        is_bytes = first.vectors.dtype.itemsize == 1
        self._writer = _parquet(file, schema, is_bytes) if as_parquet else pa.ipc.new_file(file, schema)

    def write(self, rows: OutputRows) -> None:
        """Raises CorpusError for ids that do not fit the type of those before them."""
        table = _table(rows, self._with_vectors)
        if table["id"].type != self._id_type:
            try:
                table = table.set_column(0, pa.field("id", self._id_type), table["id"].cast(self._id_type))
            except pa.ArrowInvalid as error:
                problem = f"one does not fit the type of those before it, {self._id_type}"
                raise CorpusError("id", problem, "write all ids as strings") from error
        self._writer.write_table(table if self._as_parquet else table.combine_chunks())

    def close(self) -> None:
        self._writer.close()


def _parquet(file: BinaryIO, schema: pa.Schema, is_bytes: bool) -> pq.ParquetWriter:
    dictionary = [name for name in schema.names if name != "embedding"]
    compression = dict.fromkeys(dictionary, "zstd")
    if "embedding" in schema.names:
        dictionary += ["embedding.list.element"] if is_bytes else []
        compression["embedding.list.element"] = "zstd" if is_bytes else "none"
    options = {"compression": compression, "use_dictionary": dictionary, "write_statistics": ["id"]}
    return pq.ParquetWriter(file, schema, **options)


def json_as_strings(table: pa.Table) -> pa.Table:
    """Return a table whose columns of JSON are strings: those in it as themselves, anything else as its text."""
    for i, field in enumerate(table.schema):
        if field.metadata == AS_JSON:
            texts = [plain_json(value) for value in table.column(i).to_pylist()]
            table = table.set_column(i, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
    return table


def _table(rows: OutputRows, with_vectors: bool = True) -> pa.Table:
    table = json_as_strings(rows.table)
    if with_vectors:
        vectors = vector_array(rows.vectors)
        table = table.add_column(1, pa.field("embedding", vectors.type, nullable=False), vectors)
    return table


class NumpyWriter:
    """.npy: [rows, width], which numpy.load(mmap_mode="r") maps. The header is written again at the end.

    The file is not written through a mapping, as a full disk would then end the process without a word.
    """

    def __init__(self, file: BinaryIO, first: OutputRows) -> None:
        self._file, self._dtype = file, first.vectors.dtype
        self._rows, self._width = 0, first.vectors.shape[1]
        self._write_header()

    def _write_header(self) -> None:
        """Write the header, which numpy makes equally long for any number of rows."""
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
    """.jsonl: an object on each line, with carried columns as they were in a .jsonl input.

    From other inputs, times become ISO 8601, durations numbers of their unit, decimals strings, and bytes base64. NaN
    and infinities become null, as JSON lacks them.
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
    """Return a table whose Python values are JSON or bytes. Raises ArrowException for a type without such values."""
    for step in (in_utc, for_json):
        table = table.cast(pa.schema([field.with_type(step(field.type)) for field in table.schema]))
    return table


def _base64(value: object) -> str:
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return base64.b64encode(value).decode()


Writer = TableWriter | NumpyWriter | JsonLinesWriter
"""Takes the output piece by piece; `close` writes the end of the file, and leaves the file open."""
