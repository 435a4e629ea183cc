"""What the queue promises by itself; what it does for requests is tested with the batcher."""

import asyncio
import itertools

import numpy as np
import pytest

from batching.errors import Busy, EngineStopped
from batching.queue import Queue
from batching.request import Request
from engine.contract import DIMENSIONS


def lengths(queue: Queue, full: bool = False) -> list[int]:
    """Return the lengths of the texts in the next batch."""
    batch = queue.next_batch(full)
    assert batch is not None
    return [len(job.token_ids) for job in batch]


def test_a_batch_behind_another_has_to_be_full() -> None:
    async def run() -> None:
        queue = Queue(10**9, 0, lambda: 100)
        queue.admit(Request([[1] * 60]))
        assert lengths(queue, full=True) == []
        queue.admit(Request([[2] * 40]))
        assert lengths(queue, full=True) == [40, 60]

    asyncio.run(run())


def test_a_request_withdrawn_before_its_admission_is_ignored() -> None:
    async def run() -> None:
        queue = Queue(10**9, 0, lambda: 100)
        gone, other = Request([[1] * 20]), Request([[2] * 30])
        queue.withdraw(gone)
        queue.admit(gone)
        queue.admit(other)
        assert lengths(queue) == [30]

    asyncio.run(run())


def test_a_request_withdrawn_while_its_batch_computes_gets_nothing_and_the_others_do() -> None:
    async def run() -> None:
        queue = Queue(10**9, 0, lambda: 100)
        gone, other = Request([[1] * 20]), Request([[1] * 20])
        queue.admit(gone)
        batch = queue.next_batch(full=False)
        assert batch is not None
        queue.admit(other)  # shares the job that is being computed
        queue.withdraw(gone)
        queue.deliver(batch, np.ones((1, DIMENSIONS), dtype=np.float32))
        assert (await other.answer()).cache_hits == 0 and (other.vectors == 1).all()
        assert gone.outcome is None

    asyncio.run(run())


def test_the_requests_of_a_batch_are_woken_by_one_call_to_their_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        queue = Queue(10**9, 0, lambda: 1_000)
        requests = [Request([[first] * 20, [99] * 20]) for first in range(30)]
        for request in requests:
            queue.admit(request)
        answers = asyncio.gather(*[request.answer() for request in requests])
        await asyncio.sleep(0)
        loop, calls = asyncio.get_running_loop(), itertools.count()
        wake_up = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *call: (next(calls), wake_up(*call))[1])
        batch = queue.next_batch(full=False)
        assert batch is not None
        queue.deliver(batch, np.ones((31, DIMENSIONS), dtype=np.float32))
        assert {cost.batch_size for cost in await answers} == {31}
        assert next(calls) == 1

    asyncio.run(run())


def test_an_answered_request_claims_nothing_before_its_coroutine_goes_on() -> None:
    async def run() -> None:
        queue = Queue(30, 0, lambda: 100)
        queue.admit(Request([[1] * 20]))
        batch = queue.next_batch(full=False)
        assert batch is not None
        with pytest.raises(Busy):
            queue.admit(Request([[2] * 20]))
        queue.deliver(batch, np.ones((1, DIMENSIONS), dtype=np.float32))
        queue.admit(Request([[2] * 20]))
        assert lengths(queue) == [20]
        assert queue.totals().queue_s.counts.count(0) < len(queue.totals().queue_s.counts)  # counted as answered

    asyncio.run(run())


def test_a_stopped_queue_has_no_batches_and_tells_the_first_reason() -> None:
    async def run() -> None:
        queue = Queue(30, 0, lambda: 100)
        waiting = Request([[1] * 20])
        queue.admit(waiting)
        with pytest.raises(Busy):
            queue.admit(Request([[2] * 20]))
        queue.stop("first")
        queue.stop("second")
        assert queue.next_batch(full=False) is None and queue.next_batch(full=True) is None
        for late in (Request([[2] * 20]), Request([[1] * 20], afresh=True)):  # stopped, not busy
            with pytest.raises(EngineStopped, match=r"^first$"):
                queue.admit(late)
        with pytest.raises(EngineStopped, match=r"^first$"):
            await waiting.answer()

    asyncio.run(run())


def test_a_request_of_one_cached_text_counts_as_one_that_was_admitted() -> None:
    async def counted(direct: bool) -> tuple[object, ...]:
        queue = Queue(10**9, 10**6, lambda: 100)
        queue.admit(Request([[1, 2, 3]]))
        batch = queue.next_batch(full=False)
        assert batch is not None
        queue.deliver(batch, np.full((1, DIMENSIONS), 5.0, dtype=np.float32))
        if direct:
            vectors = queue.cached([1, 2, 3])
            assert queue.cached([1, 2]) is None
            assert vectors is not None and not vectors.flags.writeable, "requests share it"
        else:
            request = Request([[1, 2, 3]])
            queue.admit(request)
            vectors = request.vectors
        assert vectors.tolist() == [[5.0] * DIMENSIONS]
        totals = queue.totals()
        facts = (totals.requests, totals.texts, totals.tokens, totals.cache_hits, totals.queue_s.counts)
        return (*facts, totals.compute_s.counts, queue.waiting_tokens())

    assert asyncio.run(counted(direct=True)) == asyncio.run(counted(direct=False))


def test_a_stopped_queue_gives_no_cached_vector() -> None:
    async def run() -> None:
        queue = Queue(10**9, 10**6, lambda: 100)
        queue.admit(Request([[1]]))
        batch = queue.next_batch(full=False)
        assert batch is not None
        queue.deliver(batch, np.ones((1, DIMENSIONS), dtype=np.float32))
        assert queue.cached([1]) is not None
        queue.stop("the engine was closed")
        with pytest.raises(EngineStopped):
            queue.cached([1])

    asyncio.run(run())
