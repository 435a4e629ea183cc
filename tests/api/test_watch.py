"""Clients that go away while they wait, each watched from its own time on."""

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive

from api.watch import WATCH_AFTER_S, Watch


def leaving_after(seconds: float) -> Receive:
    """Return a client that goes away after so many seconds, having sent another part of its body."""
    messages = [{"type": "http.disconnect"}, {"type": "http.request"}]

    async def receive() -> Message:
        await asyncio.sleep(seconds / 2)
        return messages.pop()

    return receive


async def staying() -> Message:
    """A client that never goes away."""
    await asyncio.Event().wait()
    raise AssertionError


async def outcome(work: Awaitable[Any]) -> object:
    """Return what the work returns, or the type of what it raises."""
    try:
        return await work
    except BaseException as error:
        return type(error)


def test_only_the_request_whose_client_goes_away_is_cancelled() -> None:
    async def run() -> None:
        watch, cancelled = Watch(), asyncio.Event()

        async def forever() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        async def later(seconds: float, work: Awaitable[Any], receive: Receive) -> object:
            await asyncio.sleep(seconds)
            return await outcome(watch.while_connected(work, receive))

        waits = WATCH_AFTER_S * 5
        outcomes = await asyncio.gather(
            later(0, forever(), leaving_after(0.01)),
            later(WATCH_AFTER_S * 1.5, forever(), leaving_after(0.01)),  # when the first is watched already
            later(0, asyncio.sleep(waits, "one"), staying),
            later(WATCH_AFTER_S * 1.5, asyncio.sleep(waits, "two"), staying),
        )
        assert [*outcomes] == [ClientDisconnect, ClientDisconnect, "one", "two"]
        assert cancelled.is_set()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0)
        assert all(task.done() for task in left), "nobody is watched whose request has ended"

    asyncio.run(run())


def test_other_cancellations_and_errors_are_passed_on() -> None:
    async def run() -> None:
        watch = Watch()

        async def fails() -> None:
            raise ValueError

        assert await outcome(watch.while_connected(fails(), staying)) is ValueError
        task = asyncio.create_task(watch.while_connected(asyncio.sleep(60), staying))
        await asyncio.sleep(WATCH_AFTER_S * 3)
        task.cancel()
        assert await outcome(task) is asyncio.CancelledError

    asyncio.run(run())


def test_requests_that_take_no_time_share_a_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        watch, loop, timers = Watch(), asyncio.get_running_loop(), list[float]()
        call_later = loop.call_later

        def counted(delay: float, *rest: Any) -> asyncio.TimerHandle:
            timers.append(delay)
            return call_later(delay, *rest)

        monkeypatch.setattr(loop, "call_later", counted)
        for _ in range(100):
            await watch.while_connected(asyncio.sleep(0), staying)
        assert timers == [WATCH_AFTER_S]
        await asyncio.sleep(WATCH_AFTER_S * 1.5)  # which has a timer of its own
        assert len(timers) == 2, "an idle server has none"

    asyncio.run(run())
