"""A process for each of several devices; blocks go to them, shards appear on the disk."""

import multiprocessing
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import engine
from corpus.blocks import Block
from corpus.pipeline import Pipeline, RunProgress
from corpus.rows import CorpusError
from corpus.shards import ShardFolder
from texts.options import Options


@dataclass(frozen=True, slots=True)
class DeviceJob:
    """What a device is to do with blocks; goes to its process."""

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
        """Return a pipeline in this process for one device, a process for each of several."""
        return self.pipeline() if len(environments) == 1 else DeviceProcesses(self, environments)


class DeviceProcesses:
    """A process for each device; a block goes to the one that has the fewest under way."""

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
        error = CorpusError(
            f"an engine's process ended (exit code {self._process.exitcode}; -9 is most often a lack of memory); what "
            "is done is kept: run the same again"
        )
        while self.waiting:
            self.waiting.popitem()[1].set_exception(error)

    def close(self) -> None:
        self._process.kill()  # a shard that it is writing counts for nothing until its rename
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
            os._exit(0)  # the run is gone, and a new one may be at the same block
        pipeline.submit(block).add_done_callback(partial(answer, block.index))
