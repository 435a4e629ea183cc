"""Which waiting texts are computed together, and in which order."""

import asyncio

from batching.request import Job, Request
from batching.scheduler import Scheduler


def jobs_of(lengths: list[int]) -> list[Job]:
    """Return the jobs of one request of texts with these lengths."""

    async def make() -> Request:
        return Request([[0] * length for length in lengths])

    request = asyncio.run(make())
    return [Job(ids, owners=[(request, i)]) for i, ids in enumerate(request.token_ids)]


def test_a_long_text_is_not_passed_over_for_long() -> None:
    scheduler = Scheduler()
    (long,) = jobs_of([900])
    scheduler.add([long], 1_000)
    taken = []
    for _ in range(2):
        for _ in range(100):
            scheduler.add(jobs_of([10]), 1_000)
        taken += scheduler.take(1_000)
    assert long in taken


def test_a_request_of_many_texts_does_not_hold_up_the_others() -> None:
    scheduler = Scheduler()
    scheduler.add(jobs_of([20] * 2_048), 1_000)
    scheduler.take(1_000)
    for _ in range(40):
        (single,) = jobs_of([20])
        scheduler.add([single], 1_000)
        batch = scheduler.take(1_000)
        assert single in batch
        assert len(batch) == 50  # full, the rest of it from the large request


def test_a_text_that_two_requests_wait_for_keeps_the_earlier_turn() -> None:
    scheduler = Scheduler()
    jobs = jobs_of([20] * 2_048)
    scheduler.add(jobs, 1_000)
    scheduler.add([jobs[-1]], 1_000)
    assert jobs[-1] in scheduler.take(1_000)
    assert scheduler.tokens == 20 * (2_048 - 50)


def test_a_batch_is_sorted_by_length_and_texts_of_equal_length_keep_their_order() -> None:
    scheduler = Scheduler()
    jobs = jobs_of([15, 9, 12, 9, 8, 12, 9])
    scheduler.add(jobs, 1_000)
    assert scheduler.take(1_000) == [jobs[i] for i in (4, 1, 3, 6, 2, 5, 0)]


def test_a_text_without_owners_is_dropped() -> None:
    scheduler = Scheduler()
    abandoned, wanted = jobs_of([20, 20])
    scheduler.add([abandoned, wanted], 1_000)
    abandoned.owners = []
    scheduler.discard(abandoned)
    assert scheduler.tokens == 20
    assert scheduler.take(1_000) == [wanted]
    assert scheduler.take(1_000) == []
