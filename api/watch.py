"""Clients that go away while they wait: their requests are cancelled."""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

# From then on a request is watched for its client's going away; until twice as late where others came before.
WATCH_AFTER_S = 0.05


@dataclass(eq=False, slots=True)
class _Request:
    """A request that is worked on, and how to learn that its client has gone."""

    task: "asyncio.Task[Any]"
    receive: Receive
    watcher: "asyncio.Task[None] | None" = None
    gone: bool = False

    async def watch(self) -> None:
        while not self.gone:
            self.gone = (await self.receive())["type"] == "http.disconnect"
        self.task.cancel()


class Watch:
    """Watches the clients of all requests that take long.

    They share a timer: starting one for each request takes as long as finding a vector in the cache.
    """

    def __init__(self) -> None:
        self._new: set[_Request] = set()
        self._older: set[_Request] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def while_connected(self, work: Awaitable[Any], receive: Receive) -> Any:
        """Return what `work` returns. Cancels it and raises ClientDisconnect when the client goes away meanwhile."""
        task = asyncio.current_task()
        assert task is not None
        request = _Request(task, receive)
        self._new.add(request)
        if self._timer is None:
            self._timer = task.get_loop().call_later(WATCH_AFTER_S, self._look, task.get_loop())
        try:
            return await work
        except asyncio.CancelledError:
            if not request.gone:
                raise
            task.uncancel()
            raise ClientDisconnect from None
        finally:
            self._new.discard(request)
            self._older.discard(request)
            if request.watcher is not None:
                request.watcher.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Watch the requests that were there at the last look, and look again while there are any."""
        for request in self._older:
            request.watcher = loop.create_task(request.watch())
        self._new, self._older = set(), self._new
        self._timer = loop.call_later(WATCH_AFTER_S, self._look, loop) if self._older else None
