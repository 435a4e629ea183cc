"""How a batcher ends: closed, or because its thread died."""

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from batching.batcher import Batcher
from batching.errors import EngineStopped
from tests.support.engines import RecordingEngine, die, held_task, texts_of, until
from tests.support.vectors import random_ids

MakeBatcher = Callable[..., Batcher]

CLOSED = "the engine was closed and computes nothing more; load it again"
DIED = "the engine's thread has ended (ThreadDeath('gone')); start the server again"


def engine_threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "engine"}


@pytest.mark.parametrize("batches_in_flight", [1, 2])
def test_close_ends_the_thread_after_its_batch_and_stops_whoever_waits(
    engine: RecordingEngine, make_batcher: MakeBatcher, batches_in_flight: int
) -> None:
    engine.batches_in_flight = batches_in_flight
    before = engine_threads()

    async def run() -> None:
        batcher = make_batcher()
        under_way = await held_task(engine, batcher)
        waiting = [asyncio.create_task(batcher.embed([ids])) for ids in texts_of([20] * 30)]
        large = asyncio.create_task(batcher.embed(texts_of([20] * 500, seed=1)))  # admitted by another thread
        await asyncio.sleep(0.02)
        closing = asyncio.create_task(asyncio.to_thread(batcher.close))
        stopped = await asyncio.wait_for(asyncio.gather(*waiting, large, return_exceptions=True), 10)
        assert {repr(error) for error in stopped} == {repr(EngineStopped(CLOSED))}  # while the batch is under way
        assert not closing.done()
        engine.release()
        await asyncio.wait_for(closing, 10)
        (answer,) = await asyncio.wait_for(asyncio.gather(under_way, return_exceptions=True), 10)
        assert isinstance(answer, tuple | EngineStopped)

    asyncio.run(run())
    assert engine_threads() == before
    assert len(engine.batches) <= batches_in_flight


def test_a_closed_batcher_embeds_nothing_and_may_be_closed_again(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    text = random_ids(5)
    batcher = make_batcher(cache_bytes=10**6)
    asyncio.run(batcher.embed([text]))
    for _ in range(2):
        batcher.close()
        for late in (batcher.embed([text]), batcher.embed(texts_of([9] * 100)), batcher.embed_afresh(text)):
            with pytest.raises(EngineStopped) as stopped:
                asyncio.run(late)
            assert str(stopped.value) == CLOSED
    assert batcher.stuck_s() == 0
    assert engine.batch_sizes == [1]


def test_batchers_follow_each_other_on_one_engine(engine: RecordingEngine) -> None:
    before = engine_threads()
    for texts in ([ids] for ids in texts_of([20] * 20)):
        batcher = Batcher(engine, 10**9, 0)
        asyncio.run(batcher.embed(texts))
        batcher.close()
    assert engine_threads() == before
    assert engine.batch_sizes == [1] * 20


@pytest.mark.parametrize("after_s", [0, 0.01, 0.03])
def test_nobody_hangs_when_a_busy_batcher_is_closed(
    engine: RecordingEngine, make_batcher: MakeBatcher, after_s: float
) -> None:
    async def run() -> list[object]:
        batcher = make_batcher()
        tasks = [asyncio.create_task(batcher.embed(texts_of([30] * (1 + i * 5), seed=i))) for i in range(20)]
        await asyncio.sleep(after_s)
        closing = [asyncio.to_thread(batcher.close) for _ in range(3)]
        await asyncio.wait_for(asyncio.gather(*closing), 10)
        return list(await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10))

    assert all(isinstance(answer, tuple | EngineStopped) for answer in asyncio.run(run()))


def test_close_on_the_event_loops_own_thread(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    async def run() -> None:
        batcher = make_batcher()
        under_way = await held_task(engine, batcher)
        engine.release()
        batcher.close()
        (answer,) = await asyncio.wait_for(asyncio.gather(under_way, return_exceptions=True), 10)
        assert isinstance(answer, tuple | EngineStopped)

    asyncio.run(run())


def test_close_when_the_event_loop_is_gone(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    async def run() -> Batcher:
        batcher = make_batcher()
        await held_task(engine, batcher)
        return batcher  # asyncio.run cancels the task that is held

    batcher = asyncio.run(run())
    engine.release()
    batcher.close()
    assert batcher.stuck_s() == 0


def test_when_the_engines_thread_dies_everybody_is_told(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    engine.fault = die
    batcher = make_batcher()

    async def run() -> None:
        tasks = [asyncio.create_task(batcher.embed([ids])) for ids in texts_of([20] * 5)]
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(isinstance(answer, EngineStopped) for answer in answers)
        with pytest.raises(EngineStopped) as stopped:
            await batcher.embed([random_ids(5)])
        assert str(stopped.value) == DIED
        await until(lambda: batcher.stuck_s() == 0)

    asyncio.run(run())
    batcher.close()
    with pytest.raises(EngineStopped) as stopped:  # closing hides no death
        asyncio.run(batcher.embed([random_ids(5)]))
    assert str(stopped.value) == DIED


def test_an_idle_batcher_closes_at_once(make_batcher: MakeBatcher) -> None:
    batcher = make_batcher()
    started = time.monotonic()
    batcher.close()
    assert time.monotonic() - started < 10
