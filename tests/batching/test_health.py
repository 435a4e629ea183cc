"""When the server says that it is ill."""

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

import batching.health
from batching.batcher import Batcher
from batching.errors import EngineStopped
from batching.health import Health
from engine.packed import PackedEngine
from tests.support.engines import RecordingEngine, die, held_task, until
from tests.support.vectors import random_ids

CANARY = random_ids(12, seed=3)


@pytest.fixture
def health_of(small_engine: PackedEngine) -> Callable[[Batcher], Health]:
    """A function that returns the health of a batcher, with the canary's right vector."""
    vector = small_engine.embed([CANARY])[0]
    return lambda batcher: Health(batcher, CANARY, vector, 2e-5)


def test_health_is_the_canarys_vector(
    engine: RecordingEngine,
    small_engine: PackedEngine,
    make_batcher: Callable[..., Batcher],
    health_of: Callable[[Batcher], Health],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching.health, "EVERY_S", 0.0)

    async def run() -> None:
        health = health_of(make_batcher(cache_bytes=10**6))
        assert await health.check() and await health.check()
        assert engine.batch_sizes == [1, 1]  # computed each time
        engine.fault = lambda token_ids: small_engine.embed(token_ids) * np.float32(1.001)
        assert not await health.check()
        engine.fault = lambda token_ids: small_engine.embed(token_ids) * np.float32(np.nan)
        assert not await health.check()
        engine.fault = lambda token_ids: None
        assert await health.check()

    asyncio.run(run())


def test_health_is_asked_of_the_engine_only_now_and_then(
    engine: RecordingEngine, make_batcher: Callable[..., Batcher], health_of: Callable[[Batcher], Health]
) -> None:
    async def run() -> None:
        health = health_of(make_batcher())
        assert all([await health.check() for _ in range(20)])
        assert engine.batch_sizes == [1]

    asyncio.run(run())


def test_the_canary_is_not_refused_as_busy(
    engine: RecordingEngine, make_batcher: Callable[..., Batcher], health_of: Callable[[Batcher], Health]
) -> None:
    async def run() -> None:
        batcher = make_batcher(max_waiting_tokens=95)
        first = await held_task(engine, batcher)
        waiting = asyncio.create_task(batcher.embed([random_ids(90)]))
        checking = asyncio.create_task(health_of(batcher).check())
        await asyncio.sleep(0.02)
        engine.release()
        assert await checking
        await asyncio.gather(first, waiting)

    asyncio.run(run())
    assert engine.batch_lengths == [[5], [12, 90]]  # computed


def test_a_batch_that_hangs_is_ill_and_one_that_takes_long_is_not(
    engine: RecordingEngine,
    make_batcher: Callable[..., Batcher],
    health_of: Callable[[Batcher], Health],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(batching.health, "EVERY_S", 0.0)
    monkeypatch.setattr(batching.health, "PATIENCE_S", 0.05)

    async def run() -> None:
        batcher = make_batcher()
        health = health_of(batcher)
        task = await held_task(engine, batcher)
        assert await health.check()
        monkeypatch.setattr(batching.health, "HANG_S", 0.01)
        assert not await health.check()
        assert "a batch has been computing for" in caplog.text
        engine.release()
        await task
        await until(lambda: batcher.stuck_s() == 0)
        assert await health.check()

    asyncio.run(run())


def test_a_dead_thread_is_ill(
    engine: RecordingEngine,
    make_batcher: Callable[..., Batcher],
    health_of: Callable[[Batcher], Health],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.fault = die

    async def run() -> None:
        batcher = make_batcher()
        with pytest.raises(EngineStopped):
            await batcher.embed([random_ids(5)])
        assert not await health_of(batcher).check()

    asyncio.run(run())
    assert "unhealthy: the engine's thread has ended (ThreadDeath('gone')); start the server again" in caplog.text
