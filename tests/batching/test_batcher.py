"""Requests through the batcher: who is computed with whom, who waits and who fails."""

import asyncio
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from batching.batcher import Batcher
from batching.errors import Busy, EngineFailed
from engine.contract import DIMENSIONS
from engine.packed import PackedEngine
from tests.support.engines import RecordingEngine, held_task, texts_of, until
from tests.support.vectors import Unread, random_ids

MakeBatcher = Callable[..., Batcher]


def test_sixty_four_requests_at_once_get_what_they_get_alone(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    rng = np.random.default_rng(0)
    requests = [texts_of(rng.integers(2, 120, rng.integers(1, 6)).tolist(), seed=i) for i in range(64)]

    async def run() -> list[np.ndarray]:
        batcher = make_batcher()
        answers = await asyncio.gather(*[batcher.embed(request) for request in requests])
        return [vectors for vectors, _ in answers]

    for request, vectors in zip(requests, asyncio.run(run()), strict=True):
        np.testing.assert_allclose(vectors, np.concatenate([engine.embed([ids]) for ids in request]), atol=1e-5)


def test_an_idle_engine_starts_at_once_and_what_waits_meanwhile_is_the_next_batch(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    async def run() -> None:
        batcher = make_batcher()
        first = await held_task(engine, batcher)
        others = [asyncio.create_task(batcher.embed([ids])) for ids in texts_of([9] * 30)]
        await asyncio.sleep(0)  # they wait from now on
        await asyncio.sleep(0.05)
        assert engine.batch_sizes == [1]
        engine.release()
        await asyncio.gather(first, *others)
        cost = others[0].result()[1]
        assert engine.batch_sizes == [1, 30]
        assert cost.batch_size == 30 and cost.queue_ms >= 40 and cost.compute_ms > 0

    asyncio.run(run())


def test_a_full_batch_is_launched_behind_another_and_a_part_of_one_is_not(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    engine.batches_in_flight = 2

    async def run() -> None:
        batcher = make_batcher()
        engine.hold()
        full = asyncio.create_task(batcher.embed(texts_of([100] * 20)))
        await until(lambda: len(engine.batches) == 2)
        part = asyncio.create_task(batcher.embed(texts_of([100], seed=1)))
        await asyncio.sleep(0.05)
        assert engine.batch_sizes == [10, 10]
        engine.release()
        await asyncio.gather(full, part)
        assert engine.batch_sizes == [10, 10, 1]

    asyncio.run(run())


def test_texts_of_like_length_are_computed_together(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    async def run() -> None:
        batcher = make_batcher()
        first = await held_task(engine, batcher)
        lengths = [9, 500, 12, 510, 8, 400, 15]
        others = [asyncio.create_task(batcher.embed([ids])) for ids in texts_of(lengths)]
        await asyncio.sleep(0.02)
        engine.release()
        await asyncio.gather(first, *others)

    asyncio.run(run())
    assert engine.batch_lengths == [[5], [8, 9, 12, 15], [500], [400, 510]]


def test_a_batch_is_launched_sorted_by_length(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    texts = texts_of([15, 9, 12, 9, 8, 12, 9])

    async def run() -> list[np.ndarray]:
        batcher = make_batcher()
        first = await held_task(engine, batcher)
        tasks = [asyncio.create_task(batcher.embed(request)) for request in (texts[:3], texts[3:])]
        await asyncio.sleep(0.02)
        engine.release()
        await asyncio.gather(first, *tasks)
        return [task.result()[0] for task in tasks]

    answers = asyncio.run(run())
    assert engine.batches[1] == [texts[i] for i in (4, 3, 1, 6, 5, 2, 0)]  # equal lengths by their turns
    np.testing.assert_allclose(np.concatenate(answers), engine.embed(texts), atol=1e-5)


def test_identical_texts_in_flight_are_computed_once(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    same, other = texts_of([30, 31])

    async def run() -> list[np.ndarray]:
        batcher = make_batcher()
        first = await held_task(engine, batcher)
        tasks = [asyncio.create_task(batcher.embed([same, other, same])) for _ in range(5)]
        await asyncio.sleep(0.02)
        engine.release()
        await asyncio.gather(first, *tasks)
        return [task.result()[0] for task in tasks]

    answers = asyncio.run(run())
    assert engine.batch_sizes == [1, 2]
    expected = engine.embed([same, other])
    for vectors in answers:
        np.testing.assert_allclose(vectors, expected[[0, 1, 0]], atol=1e-5)


def test_a_cancelled_request_is_not_computed_unless_another_waits_for_it(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    lonely, wanted = texts_of([40, 41])

    async def run() -> None:
        batcher = make_batcher()
        first = await held_task(engine, batcher)
        cancelled = asyncio.create_task(batcher.embed([lonely, wanted]))
        patient = asyncio.create_task(batcher.embed([wanted]))
        large = asyncio.create_task(batcher.embed(texts_of([20] * 500, seed=1)))  # admitted by another thread
        await asyncio.sleep(0.02)
        for task in (cancelled, large):
            task.cancel()
        await asyncio.wait([cancelled, large])
        engine.release()
        await asyncio.gather(first, patient)
        assert (await batcher.embed([lonely]))[0].shape == (1, DIMENSIONS)

    asyncio.run(run())
    assert engine.batch_lengths == [[5], [41], [40]]


def test_a_text_that_fails_fails_only_its_own_request(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    poison = random_ids(20, seed=7)

    def fault(token_ids: Sequence[Sequence[int]]) -> None:
        if any(list(ids) == poison for ids in token_ids):
            raise ValueError("no such token")

    engine.fault = fault

    async def run() -> list[object]:
        batcher = make_batcher()
        first = await held_task(engine, batcher)
        requests = [[ids] for ids in texts_of([20] * 20, seed=1)]
        requests.insert(7, [random_ids(21), poison])
        tasks = [asyncio.create_task(batcher.embed(request)) for request in requests]
        await asyncio.sleep(0.02)
        engine.release()
        await first
        return list(await asyncio.gather(*tasks, return_exceptions=True))

    answers = asyncio.run(run())
    failed = answers.pop(7)
    assert isinstance(failed, EngineFailed) and failed.position == 1
    assert str(failed) == "the engine cannot compute this text: ValueError: no such token"
    assert all(isinstance(answer, tuple) for answer in answers)


def test_an_engine_that_raises_once_harms_nobody(
    engine: RecordingEngine, make_batcher: MakeBatcher, caplog: pytest.LogCaptureFixture
) -> None:
    faults = iter([RuntimeError("once")])

    def fault(token_ids: Sequence[Sequence[int]]) -> None:
        for error in faults:
            raise error

    engine.fault = fault
    texts = texts_of([20] * 10)
    vectors, _ = asyncio.run(make_batcher().embed(texts))
    np.testing.assert_allclose(vectors, engine.embed(texts), atol=1e-5)
    assert "a batch of 10 texts failed and is halved: RuntimeError('once')" in caplog.text


def test_a_vector_that_is_not_finite_is_a_failure_and_is_not_kept(
    engine: RecordingEngine, make_batcher: MakeBatcher, small_engine: PackedEngine
) -> None:
    texts = texts_of([20, 20])

    def fault(token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        vectors = small_engine.embed(token_ids)
        vectors[[list(ids) == texts[1] for ids in token_ids], 5] = np.nan
        return vectors

    engine.fault = fault

    async def run() -> None:
        batcher = make_batcher(cache_bytes=10**6)
        sick, sound = asyncio.create_task(batcher.embed([texts[1]])), asyncio.create_task(batcher.embed([texts[0]]))
        with pytest.raises(EngineFailed, match="its vector is not finite"):
            await sick
        assert np.isfinite((await sound)[0]).all()
        engine.fault = lambda token_ids: None
        assert np.isfinite((await batcher.embed([texts[1]]))[0]).all()

    asyncio.run(run())


def test_more_work_than_the_limit_is_refused_and_a_request_alone_never_is(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    async def run() -> None:
        batcher = make_batcher(max_waiting_tokens=100)
        held = await held_task(engine, batcher)
        with pytest.raises(Busy, match=r"busy: .* have 5 tokens and this one has 180, beyond .* 75 .*; try again"):
            await batcher.embed(texts_of([90, 90]))
        small = asyncio.create_task(batcher.embed(texts_of([90])))
        await asyncio.sleep(0.02)
        with pytest.raises(Busy, match="95 tokens and this one has 20, beyond the limit of 100 "):
            await batcher.embed(texts_of([20], seed=1))
        same = asyncio.create_task(batcher.embed(texts_of([90])))  # costs nothing more
        await asyncio.sleep(0.02)
        engine.release()
        await asyncio.gather(held, small, same)
        await batcher.embed(texts_of([90, 90], seed=1))

    asyncio.run(run())


def test_what_was_computed_is_not_computed_again(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    texts = texts_of([20, 30])

    async def run() -> None:
        batcher = make_batcher(cache_bytes=10**6)
        first, cost = await batcher.embed(texts)
        assert cost.cache_hits == 0
        again, cost = await batcher.embed([texts[1], random_ids(9), texts[0]])
        assert cost.cache_hits == 2 and cost.batch_size == 1
        np.testing.assert_array_equal(again[[2, 0]], first)
        _, cost = await batcher.embed(texts)
        assert (cost.cache_hits, cost.queue_ms, cost.batch_size) == (2, 0, 0)

    asyncio.run(run())
    assert engine.batch_sizes == [2, 1]


def test_ranges_of_tokens_are_pooled_shared_and_kept_apart_from_whole_texts(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    texts = texts_of([20, 30, 40])
    ranges = [[(0, 5), (3, 20)], [(0, 30)], [(1, 2), (2, 40), (0, 40)]]
    expected = engine.embed(texts, ranges)
    assert expected.shape == (6, DIMENSIONS)
    engine.batches.clear()

    async def run() -> None:
        batcher = make_batcher(cache_bytes=10**6)
        first = await held_task(engine, batcher)
        tasks = [batcher.embed(texts, ranges), batcher.embed(texts), batcher.embed(texts[::-1], ranges[::-1])]
        answers = asyncio.gather(*tasks)
        await asyncio.sleep(0.02)
        engine.release()
        (pooled, _), (whole, _), (turned, _) = await answers
        await first
        np.testing.assert_allclose(pooled, expected, atol=1e-5)
        np.testing.assert_allclose(whole, engine.embed(texts), atol=1e-5)
        np.testing.assert_array_equal(turned[[4, 5, 3, 0, 1, 2]], pooled)
        again, cost = await batcher.embed(texts, ranges)
        assert cost.cache_hits == 3
        np.testing.assert_array_equal(again, pooled)

    asyncio.run(run())
    assert engine.batch_sizes[:2] == [1, 6]  # the held text; three texts with ranges and three without


def test_requests_of_two_event_loops_share_a_batch_and_each_is_woken(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    here, there = texts_of([20, 30])

    async def run() -> list[np.ndarray]:
        batcher = make_batcher()
        first = await held_task(engine, batcher)
        elsewhere = asyncio.create_task(asyncio.to_thread(lambda: asyncio.run(batcher.embed([there]))))
        task = asyncio.create_task(batcher.embed([here]))
        await until(lambda: batcher.waiting_tokens() == 50)
        engine.release()
        answers = await asyncio.wait_for(asyncio.gather(first, task, elsewhere), 30)
        return [vectors for vectors, _ in answers[1:]]

    np.testing.assert_allclose(np.concatenate(asyncio.run(run())), engine.embed([here, there]), atol=1e-5)
    assert engine.batch_sizes[:2] == [1, 2]


def test_token_ids_in_arrays_are_never_read_id_by_id(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    texts = texts_of([20, 30])
    arrays = [Unread("I", ids) for ids in texts]

    async def run() -> None:
        batcher = make_batcher(cache_bytes=10**6)
        vectors, _ = await batcher.embed(arrays)
        pooled, _ = await batcher.embed(arrays, [[(0, 20)], [(0, 30)]])
        np.testing.assert_allclose(pooled, vectors, atol=1e-5)
        assert (await batcher.embed(texts))[1].cache_hits == 2

    asyncio.run(run())


def test_the_cache_can_be_off(engine: RecordingEngine, make_batcher: MakeBatcher) -> None:
    async def run() -> None:
        batcher = make_batcher(cache_bytes=0)
        for _ in range(2):
            assert (await batcher.embed(texts_of([20])))[1].cache_hits == 0

    asyncio.run(run())
    assert engine.batch_sizes == [1, 1]


def test_who_waits_for_the_interpreter_s_lock_gets_it_after_a_millisecond(make_batcher: MakeBatcher) -> None:
    sys.setswitchinterval(0.005)
    make_batcher()
    assert sys.getswitchinterval() == pytest.approx(1e-3)


def test_a_text_that_a_request_has_two_thousand_times_gets_its_vector_each_time(
    engine: RecordingEngine, make_batcher: MakeBatcher
) -> None:
    text, other = texts_of([20, 30])

    async def run() -> None:
        batcher = make_batcher(cache_bytes=10**6)
        for hits in (0, 2_001):
            vectors, cost = await batcher.embed([text] * 2_000 + [other])
            assert cost.cache_hits == hits
            np.testing.assert_array_equal(vectors[:2_000], np.repeat(vectors[:1], 2_000, axis=0))
            np.testing.assert_allclose(vectors[[0, 2_000]], engine.embed([text, other]), atol=1e-5)

    asyncio.run(run())
