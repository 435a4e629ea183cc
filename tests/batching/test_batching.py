"""The queue between predictions and the engine: who is computed with whom, who waits, and who fails."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

import batching.batcher
import batching.health
import batching.stats
from batching.batcher import Batcher
from batching.errors import Busy, EngineFailed, EngineStopped
from batching.health import Health
from batching.scheduler import Job, Scheduler
from batching.vector_cache import OVERHEAD_BYTES, VectorCache
from engine.contract import DIMENSIONS, Engine, Ranges
from engine.packed import PackedEngine
from tests.support.vectors import random_ids
from weights import SMALL


class Watched(Engine):
    """The packed engine on the small checkpoint, whose launches are noted, held back or made to fail."""

    def __init__(self, engine: PackedEngine) -> None:
        self.tokenizer = engine.tokenizer
        self.number_format = engine.number_format
        self.description = "watched"
        self.batch_tokens = 1_000
        self.launched: list[list[Sequence[int]]] = []
        self.fault: Callable[[Sequence[Sequence[int]]], np.ndarray | None] = lambda token_ids: None
        self.open = threading.Event()
        self.open.set()
        self._engine = engine

    def launch(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        self.launched.append(list(token_ids))
        vectors = self.fault(token_ids)
        if vectors is None:
            vectors = self._engine.launch(token_ids, ranges)()

        def wait() -> np.ndarray:
            assert self.open.wait(30)
            return vectors

        return wait

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.launched]


@pytest.fixture(scope="module")
def small() -> PackedEngine:
    return PackedEngine(SMALL, "cpu")


@pytest.fixture
def engine(small: PackedEngine) -> Iterator[Watched]:
    watched = Watched(small)
    yield watched
    watched.open.set()


def batcher_of(engine: Engine, max_waiting_tokens: int = 10**9, cache_bytes: int = 0) -> Batcher:
    return Batcher(engine, max_waiting_tokens, cache_bytes)


async def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds: what happens in the engine's thread wakes no coroutine."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def held(engine: Watched, batcher: Batcher) -> "asyncio.Task[object]":
    """Let the engine compute a first text that does not come back before `engine.open` is set."""
    engine.open.clear()
    task: asyncio.Task[object] = asyncio.create_task(batcher.embed([random_ids(5, seed=99)]))
    await until(lambda: len(engine.launched) == 1)
    return task


def texts_of(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    return [random_ids(length, seed=seed * 10_000 + i) for i, length in enumerate(lengths)]


def test_sixty_four_requests_at_once_get_what_they_get_alone(engine: Watched) -> None:
    rng = np.random.default_rng(0)
    requests = [texts_of(rng.integers(2, 300, rng.integers(1, 6)).tolist(), seed=i) for i in range(64)]

    async def run() -> list[np.ndarray]:
        batcher = batcher_of(engine)
        answers = await asyncio.gather(*[batcher.embed(request) for request in requests])
        return [vectors for vectors, _ in answers]

    for request, vectors in zip(requests, asyncio.run(run()), strict=True):
        np.testing.assert_allclose(vectors, np.concatenate([engine.embed([ids]) for ids in request]), atol=1e-5)


def test_an_idle_engine_starts_at_once_and_what_waits_meanwhile_is_the_next_batch(engine: Watched) -> None:
    async def run() -> None:
        batcher = batcher_of(engine)
        first = await held(engine, batcher)
        others = [asyncio.create_task(batcher.embed([ids])) for ids in texts_of([9] * 30)]
        await asyncio.sleep(0.05)
        assert engine.sizes == [1]
        engine.open.set()
        await asyncio.gather(first, *others)
        cost = others[0].result()[1]
        assert engine.sizes == [1, 30]
        assert cost.batch_size == 30 and cost.queue_ms >= 40 and cost.compute_ms > 0

    asyncio.run(run())


def test_a_full_batch_is_launched_behind_another_and_a_part_of_one_is_not(engine: Watched) -> None:
    engine.batches_in_flight = 2

    async def run() -> None:
        batcher = batcher_of(engine)
        engine.open.clear()
        full = asyncio.create_task(batcher.embed(texts_of([100] * 20)))
        await until(lambda: len(engine.launched) == 2)
        part = asyncio.create_task(batcher.embed(texts_of([100], seed=1)))
        await asyncio.sleep(0.05)
        assert engine.sizes == [10, 10]
        engine.open.set()
        await asyncio.gather(full, part)
        assert engine.sizes == [10, 10, 1]

    asyncio.run(run())


def test_texts_of_like_length_are_computed_together(engine: Watched) -> None:
    async def run() -> None:
        batcher = batcher_of(engine)
        first = await held(engine, batcher)
        lengths = [9, 500, 12, 510, 8, 400, 15]
        others = [asyncio.create_task(batcher.embed([ids])) for ids in texts_of(lengths)]
        await asyncio.sleep(0.02)
        engine.open.set()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    assert [sorted(map(len, batch)) for batch in engine.launched] == [[5], [8, 9, 12, 15], [500], [400, 510]]


def test_a_long_text_is_not_passed_over_for_long() -> None:
    waiting: Scheduler[str] = Scheduler()
    waiting.add([Job([0] * 900, owners=[("long", 0)])], 1_000)
    for number in range(50):
        waiting.add([Job([0] * 10, owners=[(f"{number}, {i}", 0)]) for i in range(100)], 1_000)
        if any(len(job.token_ids) == 900 for job in waiting.take(1_000)):
            break
    assert number <= 1


def test_a_request_of_many_texts_does_not_hold_up_the_others() -> None:
    waiting: Scheduler[str] = Scheduler()
    waiting.add([Job([0] * 20, owners=[("many", i)]) for i in range(2_048)], 1_000)
    waiting.take(1_000)
    order = []
    for number in range(40):
        waiting.add([Job([0] * 20, owners=[(f"single {number}", 0)])], 1_000)
        batch = waiting.take(1_000)
        order.append([job.owners[0][0] for job in batch])
        assert f"single {number}" in order[-1]
        assert len(batch) == 50  # full, the rest of it from the large request


def test_a_text_that_two_requests_wait_for_keeps_the_earlier_turn() -> None:
    waiting: Scheduler[str] = Scheduler()
    jobs = [Job([0] * 20, owners=[("many", i)]) for i in range(2_048)]
    waiting.add(jobs, 1_000)
    waiting.add([jobs[-1]], 1_000)
    assert jobs[-1] in waiting.take(1_000)
    assert waiting.tokens == 20 * (2_048 - 50)


def test_identical_texts_in_flight_are_computed_once(engine: Watched) -> None:
    same, other = texts_of([30, 31])

    async def run() -> list[np.ndarray]:
        batcher = batcher_of(engine)
        first = await held(engine, batcher)
        tasks = [asyncio.create_task(batcher.embed([same, other, same])) for _ in range(5)]
        await asyncio.sleep(0.02)
        engine.open.set()
        await asyncio.gather(first, *tasks)
        return [task.result()[0] for task in tasks]

    answers = asyncio.run(run())
    assert engine.sizes == [1, 2]
    expected = engine.embed([same, other])
    for vectors in answers:
        np.testing.assert_allclose(vectors, expected[[0, 1, 0]], atol=1e-5)


def test_a_cancelled_request_is_not_computed_unless_another_waits_for_it(engine: Watched) -> None:
    lonely, wanted = texts_of([40, 41])

    async def run() -> None:
        batcher = batcher_of(engine)
        first = await held(engine, batcher)
        cancelled = asyncio.create_task(batcher.embed([lonely, wanted]))
        patient = asyncio.create_task(batcher.embed([wanted]))
        large = asyncio.create_task(batcher.embed(texts_of([20] * 500, seed=1)))  # admitted by another thread
        await asyncio.sleep(0.02)
        for task in (cancelled, large):
            task.cancel()
        await asyncio.wait([cancelled, large])
        engine.open.set()
        await asyncio.gather(first, patient)
        assert (await batcher.embed([lonely]))[0].shape == (1, DIMENSIONS)

    asyncio.run(run())
    assert [list(map(len, batch)) for batch in engine.launched] == [[5], [41], [40]]


def test_a_text_that_fails_fails_only_its_own_request(engine: Watched) -> None:
    poison = random_ids(20, seed=7)

    def fault(token_ids: Sequence[Sequence[int]]) -> None:
        if any(list(ids) == poison for ids in token_ids):
            raise ValueError("no such token")

    engine.fault = fault

    async def run() -> list[object]:
        batcher = batcher_of(engine)
        first = await held(engine, batcher)
        requests = [[ids] for ids in texts_of([20] * 20, seed=1)]
        requests.insert(7, [random_ids(21), poison])
        tasks = [asyncio.create_task(batcher.embed(request)) for request in requests]
        await asyncio.sleep(0.02)
        engine.open.set()
        await first
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    answers = asyncio.run(run())
    failed = answers.pop(7)
    assert isinstance(failed, EngineFailed) and failed.position == 1
    assert str(failed) == "the engine cannot compute this text: ValueError: no such token"
    assert all(isinstance(answer, tuple) for answer in answers)


def test_an_engine_that_raises_once_harms_nobody(engine: Watched, caplog: pytest.LogCaptureFixture) -> None:
    faults = iter([RuntimeError("once")])

    def fault(token_ids: Sequence[Sequence[int]]) -> None:
        for error in faults:
            raise error

    engine.fault = fault
    texts = texts_of([20] * 10)
    vectors, _ = asyncio.run(batcher_of(engine).embed(texts))
    np.testing.assert_allclose(vectors, engine.embed(texts), atol=1e-5)
    assert "a batch of 10 texts failed and is halved: RuntimeError('once')" in caplog.text


def test_a_vector_that_is_not_finite_is_a_failure_and_is_not_kept(engine: Watched, small: PackedEngine) -> None:
    texts = texts_of([20, 20])

    def fault(token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        vectors = small.embed(token_ids)
        vectors[[list(ids) == texts[1] for ids in token_ids], 5] = np.nan
        return vectors

    engine.fault = fault

    async def run() -> None:
        batcher = batcher_of(engine, cache_bytes=10**6)
        sick, sound = asyncio.create_task(batcher.embed([texts[1]])), asyncio.create_task(batcher.embed([texts[0]]))
        with pytest.raises(EngineFailed, match="its vector is not finite"):
            await sick
        assert np.isfinite((await sound)[0]).all()
        engine.fault = lambda token_ids: None
        assert np.isfinite((await batcher.embed([texts[1]]))[0]).all()

    asyncio.run(run())


def test_more_work_than_the_limit_is_refused_and_an_empty_queue_refuses_nothing(engine: Watched) -> None:
    async def run() -> None:
        batcher = batcher_of(engine, max_waiting_tokens=100)
        first = await held(engine, batcher)
        large = asyncio.create_task(batcher.embed(texts_of([90, 90])))
        await asyncio.sleep(0.02)
        with pytest.raises(Busy, match=r"busy: 180 tokens .* this request has 20 more, beyond .* 100; try again"):
            await batcher.embed(texts_of([20], seed=1))
        same = asyncio.create_task(batcher.embed(texts_of([90, 90])))  # costs nothing more
        await asyncio.sleep(0.02)
        engine.open.set()
        await asyncio.gather(first, large, same)
        await batcher.embed(texts_of([20], seed=1))

    asyncio.run(run())


def test_what_was_computed_is_not_computed_again(engine: Watched) -> None:
    texts = texts_of([20, 30])

    async def run() -> None:
        batcher = batcher_of(engine, cache_bytes=10**6)
        first, cost = await batcher.embed(texts)
        assert cost.cache_hits == 0
        again, cost = await batcher.embed([texts[1], random_ids(9), texts[0]])
        assert cost.cache_hits == 2 and cost.batch_size == 1
        np.testing.assert_array_equal(again[[2, 0]], first)
        _, cost = await batcher.embed(texts)
        assert (cost.cache_hits, cost.queue_ms, cost.batch_size) == (2, 0, 0)

    asyncio.run(run())
    assert engine.sizes == [2, 1]


def test_ranges_of_tokens_are_pooled_shared_and_kept_apart_from_whole_texts(engine: Watched) -> None:
    texts = texts_of([20, 30, 40])
    ranges = [[(0, 5), (3, 20)], [(0, 30)], [(1, 2), (2, 40), (0, 40)]]
    expected = engine.embed(texts, ranges)
    assert expected.shape == (6, DIMENSIONS)
    engine.launched.clear()

    async def run() -> None:
        batcher = batcher_of(engine, cache_bytes=10**6)
        first = await held(engine, batcher)
        tasks = [batcher.embed(texts, ranges), batcher.embed(texts), batcher.embed(texts[::-1], ranges[::-1])]
        answers = asyncio.gather(*tasks)
        await asyncio.sleep(0.02)
        engine.open.set()
        (pooled, _), (whole, _), (turned, _) = await answers
        await first
        np.testing.assert_allclose(pooled, expected, atol=1e-5)
        np.testing.assert_allclose(whole, engine.embed(texts), atol=1e-5)
        np.testing.assert_array_equal(turned[[4, 5, 3, 0, 1, 2]], pooled)
        again, cost = await batcher.embed(texts, ranges)
        assert cost.cache_hits == 3
        np.testing.assert_array_equal(again, pooled)

    asyncio.run(run())
    assert engine.sizes[:2] == [1, 6]  # the one that was held; three texts with ranges and three without


def test_the_cache_can_be_off(engine: Watched) -> None:
    async def run() -> None:
        batcher = batcher_of(engine, cache_bytes=0)
        for _ in range(2):
            assert (await batcher.embed(texts_of([20])))[1].cache_hits == 0

    asyncio.run(run())
    assert engine.sizes == [1, 1]


def test_the_cache_keeps_the_last_used_within_its_bytes() -> None:
    vector = np.ones((1, DIMENSIONS), dtype=np.float32)
    entry = 4 * 10 + vector.nbytes + OVERHEAD_BYTES
    results = VectorCache(3 * entry)
    for name in (b"a", b"b", b"c"):
        results.put(name * 40, vector)
    assert results.get(b"a" * 40) is not None
    results.put(b"d" * 40, vector)
    assert [results.get(name * 40) is not None for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]


def test_a_kept_vector_does_not_change_with_the_answer() -> None:
    vector = np.ones((1, DIMENSIONS), dtype=np.float32)
    results = VectorCache(10**6)
    results.put(b"key", vector)
    vector[:] = 0
    kept = results.get(b"key")
    assert kept is not None and (kept == 1).all()


class ThreadDeath(BaseException):
    """Not an Exception: nothing in the engine's thread may catch it."""


def die(token_ids: Sequence[Sequence[int]]) -> None:
    raise ThreadDeath("gone")


def test_when_the_engines_thread_ends_everybody_is_told(engine: Watched) -> None:
    engine.fault = die

    async def run() -> None:
        batcher = batcher_of(engine)
        tasks = [asyncio.create_task(batcher.embed([ids])) for ids in texts_of([20] * 5)]
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(isinstance(answer, EngineStopped) for answer in answers)
        with pytest.raises(EngineStopped, match=r"the engine's thread has ended \(ThreadDeath\('gone'\)\); start the"):
            await batcher.embed([random_ids(5)])
        assert not await health_of(engine, batcher).check()

    asyncio.run(run())


CANARY = random_ids(12, seed=3)


def health_of(engine: Watched, batcher: Batcher) -> Health:
    fault, engine.fault = engine.fault, lambda token_ids: None
    vector = engine.embed([CANARY])[0]
    engine.fault = fault
    engine.launched.clear()
    return Health(batcher, CANARY, vector, 2e-5)


def test_health_is_the_canarys_vector(engine: Watched, small: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching.health, "EVERY_S", 0.0)

    async def run() -> None:
        batcher = batcher_of(engine, cache_bytes=10**6)
        health = health_of(engine, batcher)
        assert await health.check() and await health.check()
        assert engine.sizes == [1, 1]  # computed each time
        engine.fault = lambda token_ids: small.embed(token_ids) * np.float32(1.001)
        assert not await health.check()
        engine.fault = lambda token_ids: small.embed(token_ids) * np.float32(np.nan)
        assert not await health.check()
        engine.fault = lambda token_ids: None
        assert await health.check()

    asyncio.run(run())


def test_health_is_asked_of_the_engine_only_now_and_then(engine: Watched) -> None:
    async def run() -> None:
        health = health_of(engine, batcher_of(engine))
        assert all([await health.check() for _ in range(20)])
        assert engine.sizes == [1]

    asyncio.run(run())


def test_a_batch_that_hangs_is_ill_and_one_that_takes_long_is_not(
    engine: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batching.health, "EVERY_S", 0.0)
    monkeypatch.setattr(batching.health, "PATIENCE_S", 0.05)

    async def run() -> None:
        batcher = batcher_of(engine)
        health = health_of(engine, batcher)
        task = await held(engine, batcher)
        assert await health.check()
        monkeypatch.setattr(batching.health, "HANG_S", 0.01)
        assert not await health.check()
        assert "a batch has been computing for" in caplog.text
        engine.open.set()
        await task
        await until(lambda: batcher.stuck_s() == 0)
        assert await health.check()

    asyncio.run(run())


def test_a_line_a_minute_under_load_and_none_without(
    engine: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(batching.stats, "PERIOD_S", 0.1)
    caplog.set_level(logging.INFO, "batching")
    batcher = batcher_of(engine, cache_bytes=10**6)
    time.sleep(0.3)
    assert not caplog.records
    monkeypatch.setattr(batching.stats, "PERIOD_S", 1.5)
    for _ in range(2):
        asyncio.run(batcher.embed(texts_of([20, 30])))
    asyncio.run(until(lambda: bool(caplog.records)))
    line = caplog.records[0].getMessage()
    assert line.startswith("2 requests with 4 texts in 2 s: 2 from the cache, 2 computed (50 tokens in 1 batches)")
    assert line.endswith("0 refused as busy")
    time.sleep(2)
    assert len(caplog.records) == 1
