"""Stored windows to one file of vectors, in the order of the rows: .parquet, .npy or .jsonl.

The file appears under its name by one rename, when it is whole. Written twice from the same windows it has the same
bytes.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.readers import AS_JSON
from corpus.rows import BadRow, CorpusError
from corpus.shards import NUMBER, Parts, StoredRows

OUTPUT_FORMATS = ("parquet", "npy", "jsonl")
# Gathered and written at once: with 768 float32 components 12 MiB.
VECTORS_AT_ONCE = 4096
OWN = {"token_count": pa.int32(), "truncated": pa.bool_()}
RANGES = {"start": pa.int64(), "end": pa.int64()}


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of the output: a table of id, token_count, truncated, ranges and carried columns, and [rows, width]."""

    table: pa.Table
    vectors: np.ndarray


class Writer(Protocol):
    """Takes the output in batches; `close` makes the file whole."""

    def write(self, batch: Batch) -> None:
        """Append rows."""
        ...

    def close(self) -> None:
        """Finish the file."""
        ...


def output_format(path: Path, named: str | None = None) -> str:
    """Return the format by its name, or by the file's. Raises CorpusError when it is none of `OUTPUT_FORMATS`."""
    found = named or path.suffix.removeprefix(".")
    if found not in OUTPUT_FORMATS:
        raise CorpusError(f"{path}: the output's format is {found!r}; name a .parquet, .npy or .jsonl file")
    return found


def side_file(output: Path, kind: str) -> Path:
    """Return the path of a file beside the output: vectors.parquet's `skipped.jsonl` is vectors.skipped.jsonl."""
    return output.with_name(f"{output.stem}.{kind}")


def write_output(
    parts: Parts, count: int, output: Path, form: str, metadata: Mapping[str, str], with_ranges: bool
) -> int:
    """Write the vectors of windows 0 to count - 1 and return how many rows of the input have none.

    Those rows are listed in `side_file(output, "skipped.jsonl")`, if there are any. With .npy everything but the
    vectors is in `side_file(output, "rows.parquet")`. Raises CorpusError when there is no vector at all, and OSError,
    as on a full disk; no file is begun under its own name.
    """
    total, skipped = _survey(parts, count)
    if not total:
        raise CorpusError(f"{output}: not written, as no row of the input has a vector")
    partial = {path: path.with_name(f"{path.name}.partial") for path in _files(output, form, bool(skipped))}
    try:
        with suppress(KeyError):
            _write_skipped(parts, count, partial[side_file(output, "skipped.jsonl")])
        writers: list[Writer] = []
        for batch in _batches(parts, count, with_ranges):
            writers = writers or _writers(output, form, partial, batch, total, metadata)
            for writer in writers:
                writer.write(batch)
        for writer in writers:
            writer.close()
        for path, work in partial.items():  # the output itself is the last: when it is there, all is
            work.rename(path)
    except BaseException:
        for work in partial.values():
            work.unlink(missing_ok=True)
        raise
    return skipped


def _files(output: Path, form: str, has_skipped: bool) -> list[Path]:
    beside = [side_file(output, "skipped.jsonl")] if has_skipped else []
    return [*beside, *([side_file(output, "rows.parquet")] if form == "npy" else []), output]


def _writers(
    output: Path, form: str, partial: Mapping[Path, Path], first: Batch, total: int, metadata: Mapping[str, str]
) -> list[Writer]:
    if form == "parquet":
        return [ParquetFile(partial[output], first, metadata, with_vectors=True)]
    if form == "jsonl":
        return [JsonLines(partial[output])]
    rows = ParquetFile(partial[side_file(output, "rows.parquet")], first, metadata, with_vectors=False)
    return [rows, NumpyFile(partial[output], total, first)]


def _survey(parts: Parts, count: int) -> tuple[int, int]:
    """Return how many vectors the output has, and how many rows have none."""
    total = skipped = 0
    for index in range(count):
        rows = parts.rows(index)
        _, _, lengths = _gather(parts, rows)
        total += int(lengths.sum())
        skipped += len(rows.bad) + int((lengths == 0).sum())
    return total, skipped


def _gather(parts: Parts, rows: StoredRows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return of each row the window that has its vectors, the first of them there, and how many they are."""
    windows, texts = rows.sources[:, 0], rows.sources[:, 1]
    firsts, lengths = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
    for window in np.unique(windows):
        here = windows == window
        offsets = parts.places(int(window)).offsets
        firsts[here] = offsets[texts[here]]
        lengths[here] = offsets[texts[here] + 1] - firsts[here]
    return windows, firsts, lengths


def _batches(parts: Parts, count: int, with_ranges: bool) -> Iterator[Batch]:
    """Yield the output's rows in order, at most `VECTORS_AT_ONCE` together."""
    id_type = next((kind for i in range(count) if (kind := parts.rows(i).table.field("id").type) != pa.null()), None)
    for index in range(count):
        rows = parts.rows(index)
        windows, firsts, lengths = _gather(parts, rows)
        row_of = np.repeat(np.arange(len(lengths)), lengths)
        within = np.arange(len(row_of)) - np.repeat(lengths.cumsum() - lengths, lengths)
        positions = firsts[row_of] + within
        for start in range(0, len(row_of), VECTORS_AT_ONCE):
            part = slice(start, start + VECTORS_AT_ONCE)
            yield _batch(parts, rows, id_type, row_of[part], windows[row_of[part]], positions[part], with_ranges)


def _batch(
    parts: Parts,
    rows: StoredRows,
    id_type: pa.DataType,
    row_of: np.ndarray,
    windows: np.ndarray,
    positions: np.ndarray,
    with_ranges: bool,
) -> Batch:
    found: dict[str, np.ndarray] = {}
    for window in np.unique(windows):
        here, places = windows == window, parts.places(int(window))
        its = {"vectors": parts.vectors(int(window), positions[here])}
        its |= {name: getattr(places, name)[positions[here]] for name in ("token_counts", "truncated", "ranges")}
        for name, values in its.items():
            target = found.setdefault(name, np.empty((len(windows), *values.shape[1:]), dtype=values.dtype))
            target[here] = values
    taken = rows.table.take(pa.array(row_of))
    columns = {"id": taken["id"].cast(id_type)}
    columns |= {"token_count": pa.array(found["token_counts"]), "truncated": pa.array(found["truncated"])}
    if with_ranges:
        columns |= {"start": pa.array(found["ranges"][:, 0]), "end": pa.array(found["ranges"][:, 1])}
    fields = [pa.field("id", id_type), *(pa.field(n, t) for n, t in (OWN | (RANGES if with_ranges else {})).items())]
    carried = list(rows.table.schema)[2:]
    arrays = [*columns.values(), *(taken[field.name] for field in carried)]
    return Batch(pa.table(arrays, schema=pa.schema([*fields, *carried])), found["vectors"])


def vector_array(vectors: np.ndarray, lacks: pa.Array | None = None) -> pa.Array:
    """Return [rows, width] as fixed-size lists of its numbers, null where `lacks` is true."""
    kind = pa.field("element", pa.from_numpy_dtype(vectors.dtype), nullable=False)
    flat = pa.array(vectors.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(kind, vectors.shape[1]), mask=lacks)


class ParquetFile:
    """.parquet: `embedding` is a fixed-size list of the precision's numbers; the settings are the file's metadata."""

    def __init__(self, path: Path, first: Batch, metadata: Mapping[str, str], with_vectors: bool) -> None:
        self._with_vectors = with_vectors
        self._metadata = metadata
        self._schema = self._table(first).schema
        # Parquet has no bytes but by a dictionary of the 256; floats have no two alike and do not shrink.
        is_bytes = first.vectors.dtype.itemsize == 1
        dictionary = [field.name for field in self._schema if field.name != "embedding"]
        dictionary += ["embedding.list.element"] if is_bytes and with_vectors else []
        compression = {field.name: "zstd" for field in self._schema if field.name != "embedding"}
        if with_vectors:
            compression["embedding.list.element"] = "zstd" if is_bytes else "none"
        self._file = path.open("wb")
        self._writer = pq.ParquetWriter(
            self._file, self._schema, compression=compression, use_dictionary=dictionary, write_statistics=["id"]
        )

    def _table(self, batch: Batch) -> pa.Table:
        table = batch.table
        for i, field in enumerate(table.schema):
            if field.metadata == AS_JSON:
                texts = [_plain(value) for value in table.column(i).to_pylist()]
                table = table.set_column(i, pa.field(field.name, pa.string()), pa.array(texts, pa.string()))
        if self._with_vectors:
            vectors = vector_array(batch.vectors)
            table = table.add_column(1, pa.field("embedding", vectors.type, nullable=False), vectors)
        return table.replace_schema_metadata(self._metadata)

    def write(self, batch: Batch) -> None:
        """See `Writer`."""
        self._writer.write_table(self._table(batch))

    def close(self) -> None:
        """See `Writer`."""
        self._writer.close()
        os.fsync(self._file.fileno())
        self._file.close()


class NumpyFile:
    """.npy: [rows, width], which numpy.load(mmap_mode="r") maps; written from front to back.

    It is not written through a mapping, as a full disk would then end the process without a word.
    """

    def __init__(self, path: Path, total: int, first: Batch) -> None:
        self._file = path.open("wb")
        descr = np.lib.format.dtype_to_descr(first.vectors.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (total, first.vectors.shape[1])}
        np.lib.format.write_array_header_1_0(self._file, header)

    def write(self, batch: Batch) -> None:
        """See `Writer`."""
        self._file.write(np.ascontiguousarray(batch.vectors).data)

    def close(self) -> None:
        """See `Writer`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class JsonLines:
    """.jsonl: one object a line, carried columns as they were in a .jsonl input."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")

    def write(self, batch: Batch) -> None:
        """See `Writer`."""
        as_json = {field.name for field in batch.table.schema if field.metadata == AS_JSON}
        for values, vector in zip(batch.table.to_pylist(), batch.vectors, strict=True):
            for name in as_json:
                values[name] = None if values[name] is None else orjson.Fragment(values[name])
            line = {"id": values.pop("id"), "embedding": vector, **values}
            self._file.write(orjson.dumps(line, default=str, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n")

    def close(self) -> None:
        """See `Writer`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _plain(value: str | None) -> str | None:
    """Return a JSON string as itself and any other JSON as its text."""
    return json.loads(value) if value is not None and value.startswith('"') else value


def _write_skipped(parts: Parts, count: int, path: Path) -> None:
    """Write a line of number and problem for every row without a vector."""
    with path.open("w", encoding="utf-8") as file:
        for index in range(count):
            rows = parts.rows(index)
            lacking = list(rows.bad)
            numbers = rows.table[NUMBER].to_pylist()
            for number, (window, text) in zip(numbers, rows.sources.tolist(), strict=True):
                if (problem := parts.places(window).refused.get(text)) is not None:
                    lacking.append(BadRow(number, problem))
            for row in sorted(lacking, key=lambda row: row.number):
                file.write(json.dumps({"number": row.number, "problem": row.problem}, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
