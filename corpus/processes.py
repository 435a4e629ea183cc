"""Where windows are computed: in this process, or in a process for each of several devices."""

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

import pyarrow as pa

import engine
from corpus.blocks import Window
from corpus.pipeline import Done, Pipeline
from corpus.rows import CorpusError
from corpus.shards import Parts
from engine.contract import Engine
from texts.options import Options


@dataclass(frozen=True, slots=True)
class Work:
    """What a device is to do with windows; goes to its process."""

    checkpoint: Path
    settings: Options
    folder: Path
    carried_fields: list[pa.Field]
    skip: bool

    def pipeline(self, loaded: "Engine | None" = None) -> Pipeline:
        """Return a pipeline over the engine, which is loaded if it is not given."""
        loaded = loaded or engine.load(self.checkpoint)
        parts = Parts(self.folder, self.carried_fields)
        return Pipeline(loaded.tokenizer, loaded.embed, self.settings, parts, self.skip)


def environments(count: int | None) -> list[dict[str, str]]:
    """Return the environment of each device's process: one GPU, or a share of the CPU's threads.

    `count` None takes all GPUs, or the CPU as one device. Raises CorpusError for none, or more GPUs than there are.
    """
    import torch  # seconds, which the rest of this module does without

    gpus = torch.cuda.device_count()
    if count is not None and not 1 <= count <= (gpus or count):
        raise CorpusError(f"devices: {count} were asked for and this machine has {gpus} GPUs; ask for 1 to so many")
    if not gpus:
        return [{"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // (count or 1)))}] * (count or 1)
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(i) for i in range(gpus)]
    return [{"CUDA_VISIBLE_DEVICES": visible[i]} for i in range(count or gpus)]


class Processes:
    """A process for each device; a window goes to the one that has the fewest under way."""

    def __init__(self, work: Work, environments: Sequence[dict[str, str]]) -> None:
        self._devices = [_Process(work, environment) for environment in environments]

    def submit(self, window: Window) -> "Future[Done]":
        """Start on a window; see `Pipeline.submit`. The future raises CorpusError when the process has died."""
        return min(self._devices, key=lambda device: len(device.waiting)).submit(window)

    def close(self) -> None:
        """End the processes."""
        for device in self._devices:
            device.close()


class _Process:
    """A process with an engine of its own, and the windows that it is working on."""

    def __init__(self, work: Work, environment: dict[str, str]) -> None:
        self.waiting: dict[int, Future[Done]] = {}
        self._connection, its_end = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_serve, args=(its_end, work, environment), daemon=True)
        self._process.start()
        its_end.close()
        threading.Thread(target=self._receive, daemon=True).start()

    def submit(self, window: Window) -> "Future[Done]":
        future: Future[Done] = Future()
        self.waiting[window.index] = future
        try:
            self._connection.send(window)
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


def _serve(connection: Connection, work: Work, environment: dict[str, str]) -> None:
    """Compute windows until the other end is gone."""
    os.environ.update(environment)  # before torch is imported, which reads it
    pipeline = work.pipeline()
    sending = threading.Lock()

    def answer(index: int, future: "Future[Done]") -> None:
        result: Any = future.exception() or future.result()
        with sending:
            connection.send((index, result))

    while True:
        try:
            window = connection.recv()
        except (EOFError, KeyboardInterrupt):
            os._exit(0)  # who asked for it is gone, and a new run may be at the same window
        pipeline.submit(window).add_done_callback(partial(answer, window.index))
