"""The process that reads .parquet and .arrow files for another: jobs on its standard input, a stream of Arrow's each.

The stream's schema carries the number of rows, -1 if the file does not tell it, or an error. A message without rows
says of which `kind` it is: "end", "overlong" (a row), "memory", or with a `problem` "damaged" or "remote". Damaged data
is reported and never passed on.
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

from corpus.arrow import as_bytes, check_schema, column_of, field_of, located, plain
from corpus.limits import Limits
from corpus.rows import Columns, CorpusError, cut

# What reading a damaged file raises. A pyarrow error that is also a MemoryError says nothing about the file.
Damaged = (OSError, pa.ArrowException, UnicodeDecodeError, KeyError, OverflowError)
# The size that a batch should have: a row group's size, where it is known, says how many rows that is.
BATCH_BYTES = 32 << 20
ERROR_CHARS = 200
MAGIC, FEATHER_1 = b"ARROW1", b"FEA1"
ENDS = {"parquet": "end", "arrow": "beginning or end"}


def memory_taken() -> int:
    """Return how many bytes this process has of what the kernel limits, 0 where the kernel does not tell."""
    with suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    return 0


def limit_memory(size: int) -> None:
    """Let this process take `size` bytes, where the kernel has such a limit."""
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_DATA, (size, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def source(path: str, name: str, file_format: str) -> Any:
    """Return the file's bytes, for pyarrow to read; those of an .arrow are mapped, as a batch may be of any size."""
    if "://" not in path:
        return pa.memory_map(path) if file_format == "arrow" else open(path, "rb")
    from corpus.sources import open_source  # takes a tenth of a second, which plain files can do without

    return open_source(path, name)


class ParquetSource:
    """A .parquet. Methods raise what `Damaged` names."""

    def __init__(self, raw: Any) -> None:
        # Spark writes times of 96 bits. As nanoseconds, the year 9999 would overflow; as microseconds it does not.
        options = {"page_checksum_verification": True, "coerce_int96_timestamp_unit": "us"}
        self._file = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20, **options)
        self.schema, self.num_rows = self._file.schema_arrow, self._file.metadata.num_rows

    def batches(self, names: list[str], first: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from `first` on. Raises also where there are fewer or more rows than the file says."""
        metadata = self._file.metadata
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        sizes = [metadata.row_group(i).total_byte_size // max(rows, 1) for i, rows in enumerate(groups)]
        rows = max(1, min(batch_rows, BATCH_BYTES // max(1, *sizes))) if sizes else batch_rows
        begin, count = 0, 0
        while begin < len(groups) and count + groups[begin] <= first:
            count += groups[begin]
            begin += 1
        left = range(begin, len(groups))
        for batch in self._file.iter_batches(rows, row_groups=left, columns=names, use_threads=False):
            if (done := first - count) < batch.num_rows:
                yield batch.slice(max(done, 0))
            count += batch.num_rows
        if not count == sum(groups) == metadata.num_rows:
            raise OSError(f"it has {count} rows, {sum(groups)} by its groups, and says {metadata.num_rows}")


class ArrowSource:
    """A file or a stream of Arrow's, which its beginning tells. Methods raise what `Damaged` names."""

    def __init__(self, raw: Any) -> None:
        begin = raw.read(len(MAGIC))
        raw.seek(0)
        if begin[:4] == FEATHER_1:
            raise OSError("it is Feather of version 1, which few programs read: write it as version 2")
        self._open = pa.ipc.open_file if begin == MAGIC else pa.ipc.open_stream
        opened = self._open(raw)
        self._raw, self.schema = raw, opened.schema
        self.num_rows = opened.count_rows() if begin == MAGIC else -1

    def batches(self, names: list[str], first: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows from `first` on, each checked, as damaged ones could end any process that looks at them."""
        tops = sorted({located(self.schema, name)[0][0] for name in names})
        # Of a mapped file chosen columns would be copied; all of them lie where they are.
        chosen = [] if isinstance(self._raw, pa.MemoryMappedFile) else tops
        self._raw.seek(0)
        opened, count = self._open(self._raw, options=pa.ipc.IpcReadOptions(included_fields=chosen)), 0
        is_file = isinstance(opened, pa.ipc.RecordBatchFileReader)
        for batch in map(opened.get_batch, range(opened.num_record_batches)) if is_file else opened:
            for begin in range(max(first - count, 0), batch.num_rows, batch_rows):
                part = batch.slice(begin, batch_rows)
                for name in names:
                    array = column_of(part, name)
                    array.cast(as_bytes(array.type)).validate(full=True)
                yield part
            count += batch.num_rows
        if self.num_rows not in (-1, count):
            raise OSError(f"it has {count} rows, and says {self.num_rows}")


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

    def send(self, columns: list[pa.Array], most: int) -> None:
        """Send the columns of a batch as they are kept."""
        arrays = [array.cast(field.type) for array, field in zip(columns, self._schema, strict=True)]
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
    try:
        raw = source(job["path"], job["name"], job["file_format"])
        file = SOURCES[job["file_format"]](raw)
        columns = columns.carrying(file.schema.names)
        names = check_schema(job["name"], file.schema, columns, job["optional"])
    except MemoryError:  # the other process knows the limit, and sees this one end
        raise
    except (CorpusError, *Damaged) as error:
        Answer(pa.schema([]), {"error": json.dumps(unopened(job, error, columns))}).close()
        return
    fields = [field_of(file.schema, name) for name in names]
    schema = pa.schema([field.with_type(plain(field.type)) for field in fields])
    stream = Answer(schema, {"rows": str(file.num_rows), "carried": json.dumps(columns.carried)})
    try:
        for batch in file.batches(names, job["first"], job["batch_rows"]) if job["batch_rows"] else ():
            stream.send([column_of(batch, name) for name in names], limits.line_bytes)
        stream.tell(kind="end")
    except MemoryError:
        stream.tell(kind="memory")
    except Damaged as error:
        stream.tell(kind="remote" if is_remote(error) else "damaged", problem=words(error, columns))
    stream.close()
    raw.close()


def unopened(job: dict[str, Any], error: Exception, columns: Columns) -> tuple[bool, str, str, str]:
    """Return whether a file was out of reach, and the place, the problem and the remedy."""
    if isinstance(error, CorpusError):
        return type(error).__name__ == "Unreachable", error.place, error.problem, error.remedy
    if is_remote(error):
        return True, job["name"], f"cannot be read: {words(error, columns)}", "download the file and name it"
    remedy = f"its {ENDS[job['file_format']]}, which says what it holds, is missing or damaged: copy or write it anew"
    problem = f"not a whole {job['file_format']} file: {words(error, columns)}"
    return False, job["name"], problem, remedy


def is_remote(error: Exception) -> bool:
    """Return whether an error is corpus.sources' RemoteError, without importing that."""
    return type(error).__name__ == "RemoteError"


def words(error: Exception, columns: Columns) -> str:
    """Return what a library says about a file, or just the kind of error where messages may not quote the file."""
    if not columns.quotes and isinstance(error, pa.ArrowException):
        return type(error).__name__
    return cut(getattr(error, "strerror", None) or " ".join(str(error).split()), ERROR_CHARS)


SOURCES: dict[str, type[ParquetSource] | type[ArrowSource]] = {"parquet": ParquetSource, "arrow": ArrowSource}


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
