"""Blocks in, shards on the disk: prepared, computed and stored, on a device in this process or on each of several."""

import ctypes
import multiprocessing
import operator
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import engine
from corpus.blocks import Block
from corpus.compute import Embed, PreparedBlock, finish, prepare_block, raw_vectors
from corpus.rows import CorpusError
from corpus.shards import ShardFolder
from engine.tokenizer import Tokenizer
from texts.options import Options

# Between what blocks leave, glibc keeps gaps, which would add up to hundreds of megabytes.
LIBC = ctypes.CDLL(None)


class RunProgress(NamedTuple):
    """How far a run is, or what a block adds: `rows` have vectors, of which `resumed` had them before.

    `computed` texts had `tokens` tokens. `read` counts all rows that are done, bad ones too, of the input's `expected`,
    an estimate unless `is_known`. Known only at the end are the `skipped` rows, and how many vectors are of texts that
    began with a prompt (`prompted`).
    """

    blocks: int = 0
    rows: int = 0
    resumed: int = 0
    computed: int = 0
    tokens: int = 0
    expected: int = 0
    skipped: int = 0
    prompted: int = 0
    read: int = 0
    is_known: bool = False

    def plus(self, block: "RunProgress") -> "RunProgress":
        """Return the sum."""
        return RunProgress(*map(operator.add, self, block))


class Pipeline:
    """Three threads, so that the next block is prepared while one is computed and the one before is written.

    The thread that computes does nothing else, as the device waits for it: vectors are finished by the one that writes.
    """

    def __init__(self, tokenizer: Tokenizer, embed: Embed, options: Options, shards: ShardFolder, skip: bool) -> None:
        """A single thread calls `embed`; `skip` stores refused texts instead of stopping at one."""
        self._prepare = partial(prepare_block, tokenizer, options, skip=skip)
        self._compute = partial(raw_vectors, embed)
        self._finish = partial(finish, options)
        self._shards = shards
        self._threads = [ThreadPoolExecutor(1, name) for name in ("prepare", "compute", "store")]

    def submit(self, block: Block) -> "Future[RunProgress]":
        """Start on a block; the future is done when its shard is on the disk, and raises UnfitRow or OSError."""
        preparing, computing, storing = self._threads
        prepared = preparing.submit(self._prepare, block)
        vectors = computing.submit(lambda: self._compute(prepared.result()))
        return storing.submit(lambda: self._store(prepared.result(), vectors.result()))

    def _store(self, prepared: PreparedBlock, vectors: np.ndarray | None) -> RunProgress:
        block = prepared.block
        self._shards.write(block, self._finish(prepared, vectors))
        if hasattr(LIBC, "malloc_trim"):
            LIBC.malloc_trim(0)
        reused, read = block.reused_rows, block.rows.num_rows
        return RunProgress(1, block.fit_rows, reused, len(block.texts), prepared.tokens, read=read)

    def close(self) -> None:
        """Drop the blocks that have not been started; a started block goes on to the end of its step."""
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class DeviceJob:
    """What a device does with blocks; goes to its process."""

    checkpoint: Path
    number_format: str
    options: Options
    output: Path
    skip: bool

    def pipeline(self) -> Pipeline:
        """Return a pipeline over an engine of its own."""
        loaded = engine.load(self.checkpoint, self.number_format)
        return Pipeline(loaded.tokenizer, loaded.embed, self.options, ShardFolder(self.output), self.skip)

    def devices(self, environments: Sequence[dict[str, str]]) -> "Pipeline | DeviceProcesses":
        """Return a pipeline in this process for one device, a process each for several."""
        return self.pipeline() if len(environments) == 1 else DeviceProcesses(self, environments)


class DeviceProcesses:
    """A process for each device; a block goes to the process with the fewest blocks under way."""

    def __init__(self, job: DeviceJob, environments: Sequence[dict[str, str]]) -> None:
        self._devices = [_DeviceProcess(job, environment) for environment in environments]

    def submit(self, block: Block) -> "Future[RunProgress]":
        """Start on a block; see `Pipeline.submit`. The future raises CorpusError when the process has died."""
        return min(self._devices, key=lambda device: len(device.waiting)).submit(block)

    def close(self) -> None:
        """End the processes."""
        for device in self._devices:
            device.close()


class _DeviceProcess:
    """A process with an engine of its own, and the blocks that it is working on."""

    def __init__(self, job: DeviceJob, environment: dict[str, str]) -> None:
        self.waiting: dict[int, Future[RunProgress]] = {}
        self._connection, child_connection = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(child_connection, job, environment), daemon=True)
        self._process.start()
        child_connection.close()
        threading.Thread(target=self._receive, daemon=True).start()

    def submit(self, block: Block) -> "Future[RunProgress]":
        future: Future[RunProgress] = Future()
        self.waiting[block.index] = future
        try:
            self._connection.send(block)
        except OSError:
            self._fail()
        return future

    def _receive(self) -> None:
        while True:
            try:
                index, result = self._connection.recv()
            except (EOFError, OSError):
                self._fail()
                return
            future = self.waiting.pop(index)
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

    def _fail(self) -> None:
        self._process.join(timeout=5)
        code = f"exit code {self._process.exitcode}; -9 is most often a lack of memory"
        problem, remedy = f"an engine's process ended ({code})", "what is done is kept: run the same again"
        while self.waiting:
            self.waiting.popitem()[1].set_exception(CorpusError("", problem, remedy))

    def close(self) -> None:
        self._process.kill()  # a shard that it is writing does not count before its rename
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, job: DeviceJob, environment: dict[str, str]) -> None:
    """Compute blocks until the other end is gone."""
    os.environ.update(environment)  # before torch is imported, which reads it
    pipeline = job.pipeline()
    sending = threading.Lock()

    def answer(index: int, future: "Future[RunProgress]") -> None:
        result: Any = future.exception() or future.result()
        with sending:
            connection.send((index, result))

    while True:
        try:
            block = connection.recv()
        except (EOFError, KeyboardInterrupt):
            os._exit(0)  # the run is gone, and a new run may be at the same block
        pipeline.submit(block).add_done_callback(partial(answer, block.index))
