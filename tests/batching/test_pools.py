"""Large work takes turns and ends when nobody waits for it. Small work does not wait for it."""

import asyncio
import threading
import time

import pytest

from batching.pools import CHARACTERS, Bounds, run, run_in_pieces
from engine.pieces import Pieces

LARGE = CHARACTERS.at_once + 1


def pieces(done: list[str], name: str, count: int, seconds: float = 0.02) -> Pieces[str]:
    for _ in range(count):
        time.sleep(seconds)
        done.append(name)
        yield
    return name


def test_pieces_of_large_work_take_turns() -> None:
    done: list[str] = []

    async def work() -> list[str]:
        return await asyncio.gather(*(run_in_pieces(CHARACTERS, LARGE, pieces(done, name, 6)) for name in "abcd"))

    assert asyncio.run(work()) == list("abcd")
    assert {*done[:8]} == set("abcd"), "no work waits until another has ended"


def test_work_that_nobody_waits_for_ends_at_its_next_piece() -> None:
    done: list[str] = []

    async def leave() -> None:
        task = asyncio.create_task(run_in_pieces(CHARACTERS, LARGE, pieces(done, "a", 1000)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        so_far = len(done)
        await asyncio.sleep(0.2)
        assert 0 < len(done) <= so_far + 1

    asyncio.run(leave())


def test_small_work_does_not_wait_for_large() -> None:
    ended = threading.Event()

    async def work() -> float:
        def large() -> Pieces[None]:
            ended.wait(30)
            yield

        waiting = [asyncio.create_task(run_in_pieces(CHARACTERS, LARGE, large())) for _ in range(20)]
        await asyncio.sleep(0.05)
        started = time.perf_counter()
        assert await run(CHARACTERS, CHARACTERS.at_once, lambda: "small") == "small"
        seconds = time.perf_counter() - started
        ended.set()
        await asyncio.gather(*waiting)
        return seconds

    assert asyncio.run(work()) < 10


def test_what_work_raises_is_raised() -> None:
    def failing() -> Pieces[None]:
        yield
        raise ValueError("text 3 is blank")

    with pytest.raises(ValueError, match="text 3 is blank"):
        asyncio.run(run_in_pieces(CHARACTERS, LARGE, failing()))


@pytest.mark.parametrize(
    ("size", "place"), [(10, "MainThread"), (11, "small-work"), (20, "small-work"), (21, "large-work")]
)
def test_the_size_decides_where_work_is_done(size: int, place: str) -> None:
    def whole() -> str:
        return threading.current_thread().name

    def in_two() -> Pieces[str]:
        yield
        return threading.current_thread().name

    async def work() -> list[str]:
        return [await run(Bounds(10, 20), size, whole), await run_in_pieces(Bounds(10, 20), size, in_two())]

    assert {name.partition("_")[0] for name in asyncio.run(work())} == {place}
