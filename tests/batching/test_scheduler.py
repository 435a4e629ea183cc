"""Which waiting texts are computed together, and in which order."""

import asyncio
import gc

import pytest

from batching.request import Job, Request
from batching.scheduler import MOST_COUNTED, Scheduler

BUDGET = 1_000


def jobs_of(lengths: list[int]) -> list[Job]:
    """Return the jobs of one request of texts with these lengths."""

    async def make() -> Request:
        return Request([[0] * length for length in lengths])

    request = asyncio.run(make())
    return [Job(ids, owners={request: [i]}) for i, ids in enumerate(request.token_ids)]


def test_a_long_text_is_not_passed_over_for_long() -> None:
    scheduler = Scheduler()
    (long,) = jobs_of([900])
    scheduler.add([long])
    taken = []
    for _ in range(MOST_COUNTED // 20 + 2):
        for _ in range(50):
            scheduler.add(jobs_of([20]))
        taken += scheduler.take(BUDGET, requests=51)
    assert long in taken


@pytest.mark.parametrize("requests", [1, 12, 200])
def test_a_short_text_is_in_one_of_the_next_batches_whatever_is_queued(requests: int) -> None:
    scheduler = Scheduler()
    for _ in range(requests):
        scheduler.add(jobs_of([400] * 200))
    waited = []
    for _ in range(100):
        scheduler.take(BUDGET, requests)
        (single,) = jobs_of([20])
        scheduler.add([single])
        waited.append(next(n for n in range(200) if single in scheduler.take(BUDGET, requests + 1)))
    assert max(waited) <= 1 + requests // 2, waited  # a batch holds two of the others' texts


def test_requests_of_many_texts_get_like_shares() -> None:
    scheduler = Scheduler()
    first, second = jobs_of([50] * 400), jobs_of([50] * 400)
    scheduler.add(first)
    for _ in range(5):
        scheduler.take(BUDGET)
    scheduler.add(second)
    taken = [job for _ in range(10) for job in scheduler.take(BUDGET, requests=2)]
    assert abs(len({*taken} & {*second}) - 100) <= 10


def test_texts_that_nobody_waits_for_any_more_are_not_kept() -> None:
    scheduler = Scheduler()
    (kept,) = jobs_of([10])
    scheduler.add([kept])
    for _ in range(20):
        abandoned = jobs_of([10] * 1_000)
        scheduler.add(abandoned)
        for job in abandoned:
            job.owners = {}
            scheduler.discard(job)
    held = [each for each in gc.get_objects() if isinstance(each, Job)]
    assert len(held) < 5_000 and scheduler.tokens == 10
    assert scheduler.take(BUDGET) == [kept]


def test_a_request_of_many_texts_does_not_hold_up_the_others() -> None:
    scheduler = Scheduler()
    scheduler.add(jobs_of([20] * 2_048))
    scheduler.take(BUDGET)
    for _ in range(40):
        (single,) = jobs_of([20])
        scheduler.add([single])
        batch = scheduler.take(BUDGET)
        assert single in batch
        assert len(batch) == 50  # full, the rest of it from the large request


def test_a_text_that_two_requests_wait_for_keeps_the_earlier_turn() -> None:
    scheduler = Scheduler()
    jobs = jobs_of([20] * 2_048)
    scheduler.add(jobs)
    scheduler.add([jobs[-1]])
    assert jobs[-1] in scheduler.take(BUDGET)
    assert scheduler.tokens == 20 * (2_048 - 50)


def test_a_batch_is_sorted_by_length_and_texts_of_equal_length_keep_their_order() -> None:
    scheduler = Scheduler()
    jobs = jobs_of([15, 9, 12, 9, 8, 12, 9])
    scheduler.add(jobs)
    assert scheduler.take(BUDGET) == [jobs[i] for i in (4, 1, 3, 6, 2, 5, 0)]


def test_a_text_without_owners_is_dropped() -> None:
    scheduler = Scheduler()
    abandoned, wanted = jobs_of([20, 20])
    scheduler.add([abandoned, wanted])
    abandoned.owners = {}
    scheduler.discard(abandoned)
    assert scheduler.tokens == 20
    assert scheduler.take(BUDGET) == [wanted]
    assert scheduler.take(BUDGET) == []
