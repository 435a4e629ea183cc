"""Who is refused as busy, and who is not."""

import asyncio
import time

import numpy as np
import pytest

from batching.admission import Admission, Claim
from batching.errors import Busy
from batching.queue import Queue
from batching.request import Request
from engine.contract import DIMENSIONS

LIMIT, BATCH = 64_000, 250


def admitted(admission: Admission, tokens: int) -> Claim | None:
    """Return the claim of a request of so many tokens, None if it is refused."""
    claim = Claim()
    try:
        admission.claim(claim, tokens)
    except Busy:
        return None
    return claim


@pytest.mark.parametrize("tokens", [501, 4_001, 10**9])
def test_small_requests_find_room_beside_any_number_of_large_ones(tokens: int) -> None:
    admission = Admission(LIMIT, BATCH)
    assert admission.small_tokens == 500
    large = [admitted(admission, tokens) for _ in range(1_000)]
    assert 12 <= sum(claim is not None for claim in large) < 100
    assert sum(admitted(admission, 50) is not None for _ in range(1_000)) >= LIMIT // 4 // 50


def test_what_is_given_back_can_be_claimed_again() -> None:
    admission = Admission(LIMIT, BATCH)
    claims = [admitted(admission, 10**6) for _ in range(12)]
    assert admitted(admission, 10**6) is None
    assert claims[3] is not None
    admission.release(claims[3])
    admission.release(claims[3])
    assert admitted(admission, 10**6) is not None and admitted(admission, 10**6) is None


def test_a_claim_is_made_exact_and_is_not_refused_for_what_it_has() -> None:
    admission = Admission(LIMIT, BATCH)
    claims = [admitted(admission, 10**6) for _ in range(12)]
    assert claims[0] is not None
    admission.claim(claims[0], 4_000)
    assert claims[0].tokens == 4_000
    admission.claim(claims[0], 100)
    admission.claim(small := Claim(), 100)
    with pytest.raises(Busy, match=r"44,\d{3} tokens and this one has 9,999, .* 48,000 for requests of more than 500 "):
        admission.claim(small, 9_999)
    assert small.tokens == 100


@pytest.mark.parametrize("limit", [1, 300])
def test_a_request_alone_is_never_refused(limit: int) -> None:
    admission = Admission(limit, BATCH)
    claim = admitted(admission, 10**9)
    assert claim is not None and admitted(admission, 600) is None
    admission.release(claim)
    assert admitted(admission, 600) is not None


def test_texts_that_come_many_times_are_withdrawn_in_no_time() -> None:
    """Sixteen clients that send one text 1,100 times and leave once froze all others for a minute."""

    async def run() -> None:
        queue = Queue(10**9, 0, lambda: 100)
        requests = [Request([[1] * 20] * 1_100) for _ in range(64)]
        started = time.process_time()
        for request in requests:
            queue.admit(request)
        for request in requests:
            queue.withdraw(request)
        assert time.process_time() - started < 5
        assert queue.waiting_tokens() == 0
        queue.admit(Request([[2] * 9]))
        batch = queue.next_batch(full=False)
        assert batch is not None and [len(job.token_ids) for job in batch] == [9]

    asyncio.run(run())


def test_a_text_that_comes_many_times_fills_all_its_places() -> None:
    async def run() -> None:
        queue = Queue(10**9, 0, lambda: 100)
        first, second = Request([[1] * 20, [2] * 9, [1] * 20] * 400), Request([[1] * 20])
        queue.admit(first)
        queue.admit(second)
        for _ in range(2):
            batch = queue.next_batch(full=False)
            assert batch is not None and len(batch) == 1
            queue.deliver(batch, np.full((1, DIMENSIONS), len(batch[0].token_ids), np.float32))
        await asyncio.gather(first.answer(), second.answer())
        assert first.vectors[:, 0].tolist() == [20, 9, 20] * 400 and second.vectors[0, 0] == 20

    asyncio.run(run())
