"""A .parquet or .arrow file, read by a process of its own, whose memory the kernel limits.

A few bytes of parquet may unfold to any size: in its description, a page, a dictionary, or lists within lists. Only
the library that reads it knows, and that has no limit.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa

from corpus.limits import MB, Limits
from corpus.rows import Columns, CorpusError
from corpus.sources import RemoteError, Unreachable

ROOT = Path(__file__).parent.parent
BATCH_ROWS = 256
# pyarrow does without numpy, which takes half of the time to start.
START = (
    f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['numpy'] = None; "
    "from corpus import columnar_process; columnar_process.main()"
)
# After a batch that took too much memory, the next try has this many times fewer rows.
FEWER = 16


class Damaged(OSError):
    """A file that cannot be read further."""


class OutOfMemory(Exception):
    """The process was at its limit."""


Process = subprocess.Popen[bytes]
_idle: list[Process] = []
"""Processes that wait for the next file, as starting another takes a fifth of a second."""
_most_idle = 1
_taking = threading.Lock()
os.register_at_fork(after_in_child=_idle.clear)


def _take() -> Process:
    with _taking:
        while _idle:
            if (process := _idle.pop()).poll() is None:
                return process
    # Other memory pools reserve more than they use, and the kernel counts that too.
    environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system"}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", START], stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment
    )


@contextmanager
def idle_processes(most: int) -> Iterator[None]:
    """Let so many processes wait for the next files, where usually one does."""
    global _most_idle
    _most_idle = most
    try:
        yield
    finally:
        with _taking:
            _most_idle, ending = 1, _idle[1:]
            del _idle[1:]
        for process in ending:
            _end(process)


def _give_back(process: Process) -> None:
    with _taking:
        if len(_idle) < _most_idle:
            _idle.append(process)
            return
    _end(process)


def _end(process: Process) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(OSError, ValueError):  # unsent bytes, or another thread that reads
                pipe.close()


class ColumnarFile:
    """A file's wanted columns. Raises CorpusError for a damaged file, and for columns missing or of a wrong type."""

    schema: pa.Schema
    """The wanted columns that it has, of the types that they are kept as; columns of other types become these."""
    num_rows: int
    """-1 where the file does not tell."""
    carried: tuple[str, ...]
    """The columns to carry, as asked for or all."""

    def __init__(
        self, path: str, name: str, file_format: str, columns: Columns, optional: Collection[str], limits: Limits
    ) -> None:
        """Messages call the file `name`; it may lack the `optional` columns."""
        whole = path if "://" in path else os.path.abspath(path)
        facts = {"path": whole, "name": name, "file_format": file_format, "optional": [*optional]}
        self._job = facts | {"columns": asdict(columns)} | asdict(limits)
        self._name, self._limits = name, limits
        self._changing = threading.Lock()
        self._process: Process | None = None
        self._is_closed = False
        self._stream = self._start(0, 0)
        for _ in self._received():
            pass
        facts = self._stream.schema.metadata
        self.num_rows, self.carried = int(facts[b"rows"]), tuple(json.loads(facts[b"carried"]))
        self.schema = self._stream.schema.remove_metadata()

    def batches(self) -> Iterator[pa.RecordBatch | None]:
        """Yield the rows from the first on, and None for a row over the limit.

        Raises Damaged or RemoteError, and CorpusError for a row that takes too much memory.
        """
        first, rows = 0, BATCH_ROWS
        while True:
            self._stream = self._start(first, rows)
            try:
                for batch in self._received():
                    first += 1 if batch is None else batch.num_rows
                    yield batch
                return
            except OutOfMemory:
                self._end_process()
                if rows == 1:
                    raise CorpusError(f"{self._name}, row {first + 1}", self._too_much()) from None
            rows = max(rows // FEWER, 1)

    def close(self) -> None:
        """End reading. If another thread reads, it raises."""
        self._is_closed = True
        self._end_process()

    def _taken_away(self) -> Process | None:
        with self._changing:
            process, self._process = self._process, None
        return process

    def _end_process(self) -> None:
        if process := self._taken_away():
            _end(process)

    def _keep_process(self) -> None:
        """Let another file have the process, which is done with this file."""
        process = self._taken_away()
        with suppress(StopIteration):
            self._stream.read_next_batch()
        if process:
            _give_back(process)

    def _start(self, first: int, rows: int) -> pa.RecordBatchStreamReader:
        """Begin to read from row `first` on, at most `rows` at a time, 0 for the schema alone."""
        job = json.dumps(self._job | {"first": first, "batch_rows": rows})
        process = _take()
        with self._changing:
            self._process = process
        if self._is_closed:
            self._end_process()
            raise Damaged("it was closed")
        assert process.stdin
        try:
            process.stdin.write(f"{job}\n".encode())
            process.stdin.flush()
            self._stream = pa.ipc.open_stream(process.stdout)
            self._stream.read_next_batch()
        except (OSError, ValueError, StopIteration, pa.ArrowException):
            self._end_process()
            raise CorpusError(self._name, f"its description: {self._too_much()}") from None
        if error := dict(self._stream.schema.metadata or {}).get(b"error"):
            self._keep_process()
            out_of_reach, *words = json.loads(error)
            raise (Unreachable if out_of_reach else CorpusError)(*words)
        return self._stream

    def _received(self) -> Iterator[pa.RecordBatch | None]:
        """Yield what the process sends, None for a row over the limit. Raises Damaged, RemoteError or OutOfMemory."""
        while True:
            try:
                batch, metadata = self._stream.read_next_batch_with_custom_metadata()
            except (StopIteration, OSError, ValueError, pa.ArrowException):
                if self._is_closed:
                    raise Damaged("it was closed") from None
                raise OutOfMemory from None
            facts: dict[bytes, bytes] = dict(metadata or {})
            kind = facts.get(b"kind")
            if kind == b"memory":
                raise OutOfMemory
            if kind in (None, b"overlong"):
                yield None if kind else batch
                continue
            self._keep_process()
            if kind == b"end":
                return
            raise (RemoteError if kind == b"remote" else Damaged)(facts[b"problem"].decode())

    def _too_much(self) -> str:
        limit = self._limits.parquet_bytes // MB
        remedy = "write it in smaller pages or batches, or set CORPUS_PARQUET_MB to more"
        return f"reading it takes more than {limit:,} MB; {remedy}"
