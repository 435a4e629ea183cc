"""The process that reads .parquet files for another: jobs on its standard input, for each a stream of Arrow's.

The stream's schema carries the number of rows, or an error. A message without rows says of which `kind` it is: "end",
"overlong" (a row), "memory", or with a `problem` "damaged" or "remote". Damaged data is reported and never passed on.
"""

import json
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.arrow import check_schema, plain
from corpus.limits import Limits
from corpus.rows import Columns, CorpusError, cut

# What reading a damaged file raises. A pyarrow error that is also a MemoryError says nothing about the file.
Damaged = (OSError, pa.ArrowException, UnicodeDecodeError, KeyError, OverflowError)
# The size that a batch should have: a row group's size, where it is known, says how many rows that is.
BATCH_BYTES = 32 << 20
ERROR_CHARS = 200


def memory_taken() -> int:
    """Return how many bytes this process has of what the kernel limits, 0 where the kernel does not tell."""
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    return 0


def limit_memory(size: int) -> None:
    """Let this process take `size` bytes, where the kernel has such a limit."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def source(path: str, name: str) -> Any:
    """Return the file's bytes, for pyarrow to read."""
    if "://" not in path:
        return open(path, "rb")
    from corpus.sources import open_source  # takes a tenth of a second, which plain files can do without

    return open_source(path, name)


def open_file(raw: Any) -> pq.ParquetFile:
    """Return the file. Raises what `Damaged` names."""
    # Spark writes times of 96 bits. As nanoseconds, the year 9999 would overflow; as microseconds it does not.
    return pq.ParquetFile(
        raw, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True, coerce_int96_timestamp_unit="us"
    )


def batches(file: pq.ParquetFile, names: list[str], first: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Yield the file's rows from `first` on. Raises what `Damaged` names, also where there are fewer or more rows."""
    metadata = file.metadata
    groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    sizes = [metadata.row_group(i).total_byte_size // max(rows, 1) for i, rows in enumerate(groups)]
    rows = max(1, min(batch_rows, BATCH_BYTES // max(1, *sizes))) if sizes else batch_rows
    begin, count = 0, 0
    while begin < len(groups) and count + groups[begin] <= first:
        count += groups[begin]
        begin += 1
    for batch in file.iter_batches(rows, row_groups=range(begin, len(groups)), columns=names, use_threads=False):
        if (done := first - count) < batch.num_rows:
            yield batch.slice(max(done, 0))
        count += batch.num_rows
    if not count == sum(groups) == metadata.num_rows:
        raise OSError(f"it has {count} rows, {sum(groups)} by its groups, and says {metadata.num_rows}")


def parts(batch: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch | None]:
    """Yield a batch in parts of about `most` bytes, None for a row that is longer."""
    if batch.nbytes <= most:
        yield batch
        return
    begin = size = 0
    for i in range(batch.num_rows):
        row = batch.slice(i, 1).nbytes
        if row > most or size + row > most:
            if i > begin:
                yield batch.slice(begin, i - begin)
            begin, size = i, 0
        if row > most:
            yield None
            begin = i + 1
        else:
            size += row
    if begin < batch.num_rows:
        yield batch.slice(begin)


class Answer:
    """The stream to the other process."""

    def __init__(self, schema: pa.Schema, facts: dict[str, str]) -> None:
        self._schema = schema
        self._nothing = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
        self._writer = pa.ipc.new_stream(sys.stdout.buffer, schema.with_metadata(facts))
        self.tell()  # the schema goes with the first message

    def send(self, batch: pa.RecordBatch, most: int) -> None:
        """Send a batch, its columns as they are kept."""
        arrays = [array.cast(field.type) for array, field in zip(batch.columns, self._schema, strict=True)]
        for part in parts(pa.RecordBatch.from_arrays(arrays, schema=self._schema), most):
            if part is None:
                self.tell(kind="overlong")
            else:
                self._writer.write_batch(part)

    def close(self) -> None:
        """Write the stream's end."""
        self._writer.close()
        sys.stdout.flush()

    def tell(self, **facts: str) -> None:
        """Send a message without rows."""
        self._writer.write_batch(self._nothing, custom_metadata=facts)
        sys.stdout.flush()


def answer(job: dict[str, Any]) -> None:
    """Do a job."""
    columns, limits = Columns(**job["columns"]), Limits(**{name: job[name] for name in Limits.__slots__})
    names = columns.wanted()
    try:
        file = open_file(raw := source(job["path"], job["name"]))
        check_schema(job["name"], file.schema_arrow, columns)
    except MemoryError:  # the other process knows the limit, and sees this one end
        raise
    except (CorpusError, *Damaged) as error:
        Answer(pa.schema([]), {"error": json.dumps(unopened(job["name"], error, columns))}).close()
        return
    fields = [file.schema_arrow.field(name) for name in names]
    schema = pa.schema([field.with_type(plain(field.type)) for field in fields])
    stream = Answer(schema, {"rows": str(file.metadata.num_rows)})
    try:
        for batch in batches(file, names, job["first"], job["batch_rows"]):
            stream.send(batch.select(names), limits.line_bytes)
        stream.tell(kind="end")
    except MemoryError:
        stream.tell(kind="memory")
    except Damaged as error:
        stream.tell(kind="remote" if is_remote(error) else "damaged", problem=words(error, columns))
    stream.close()
    raw.close()


def unopened(name: str, error: Exception, columns: Columns) -> tuple[str, str, str]:
    """Return the place, the problem and the remedy for a file that was not opened."""
    if isinstance(error, CorpusError):
        return error.place, error.problem, error.remedy
    if is_remote(error):
        return name, f"cannot be read: {words(error, columns)}", "download the file and name it"
    remedy = "its end, which says what it holds, is missing or damaged: copy or write it anew"
    return name, f"not a whole parquet file: {words(error, columns)}", remedy


def is_remote(error: Exception) -> bool:
    """Return whether an error is corpus.sources' RemoteError, without importing that."""
    return type(error).__name__ == "RemoteError"


def words(error: Exception, columns: Columns) -> str:
    """Return what a library says about a file, or just the kind of error where messages may not quote the file."""
    if not columns.quotes and isinstance(error, pa.ArrowException):
        return type(error).__name__
    return cut(getattr(error, "strerror", None) or " ".join(str(error).split()), ERROR_CHARS)


def main() -> None:
    """Do jobs until the other process has no more, or stops reading."""
    taken = memory_taken()
    with suppress(BrokenPipeError, KeyboardInterrupt):
        for line in sys.stdin:
            job = json.loads(line)
            job["columns"]["carried"] = tuple(job["columns"]["carried"])
            limit_memory(taken + job["parquet_bytes"])
            answer(job)
            pa.default_memory_pool().release_unused()
    os._exit(0)
