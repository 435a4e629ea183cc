"""A real engine that records its batches, holds them back or fails on demand, and helpers for tests with it."""

import asyncio
import threading
from collections.abc import Callable, Sequence

import numpy as np

from batching.batcher import Batcher
from engine.contract import Engine, Ranges
from engine.packed import PackedEngine
from tests.support.vectors import random_ids


class ThreadDeath(BaseException):
    """Not an Exception: nothing in the engine's thread may catch it."""


class RecordingEngine(Engine):
    """The packed engine, whose batches are recorded, held back or made to fail."""

    def __init__(self, engine: PackedEngine) -> None:
        self.tokenizer = engine.tokenizer
        self.number_format = engine.number_format
        self.description = "recording"
        self.batch_tokens = 1_000
        self.batches: list[list[Sequence[int]]] = []
        """The token ids of every batch launched."""
        self.fault: Callable[[Sequence[Sequence[int]]], np.ndarray | None] = lambda token_ids: None
        """Raises in place of a launch, or returns vectors in place of the right ones."""
        self._engine = engine
        self._released = threading.Event()
        self._released.set()

    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        self.batches.append(list(token_ids))
        vectors = self.fault(token_ids)
        if vectors is None:
            vectors = self._engine.launch(token_ids, ranges)()

        def wait() -> np.ndarray:
            assert self._released.wait(30)
            return vectors

        return wait

    def hold(self) -> None:
        """Let no batch come back until `release`."""
        self._released.clear()

    def release(self) -> None:
        """Let all batches come back."""
        self._released.set()

    @property
    def batch_sizes(self) -> list[int]:
        """The number of texts in every batch launched."""
        return [len(batch) for batch in self.batches]

    @property
    def batch_lengths(self) -> list[list[int]]:
        """The number of tokens of every text in every batch launched."""
        return [[len(ids) for ids in batch] for batch in self.batches]


def die(token_ids: Sequence[Sequence[int]]) -> None:
    """End the thread: a fault for `RecordingEngine`."""
    raise ThreadDeath("gone")


def texts_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Return the token ids of a text for each length, all different."""
    return [random_ids(length, seed=seed * 10_000 + i) for i, length in enumerate(lengths)]


async def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds: nothing in the engine's thread wakes a coroutine."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def held_task(engine: RecordingEngine, batcher: Batcher) -> "asyncio.Task[object]":
    """Return a task whose only text the engine computes, as the first, until `engine.release`."""
    engine.hold()
    task: asyncio.Task[object] = asyncio.create_task(batcher.embed([random_ids(5, seed=99)]))
    await until(lambda: len(engine.batches) == 1)
    return task
