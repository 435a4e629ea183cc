"""The public port: it passes on to Cog's server what clients may ask, and refuses all else.

Cog's server itself listens only within this machine. It makes folders named by ids, fetches from and posts to any
address in a request, and ends when any web page tells it to.
"""

import asyncio
import logging
import socket
import threading
import traceback
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import uvloop

from container.client import Client
from container.gate import Gate
from container.predictions import SMALL_BYTES, Checked, rebuild
from container.refusal import Refusal, answer
from container.requests import Head
from container.rules import Rules
from container.upstream import Pool, Upstream

logger = logging.getLogger(__name__)

BACKLOG = 2048
SWEEP_EVERY_S = 1.0
# A large body is written in pieces of this size.
PIECE_BYTES = 1 << 20
# Threads that check large bodies; the interpreter runs one of them at a time.
CHECKERS = 2
# How often to ask whether a large prediction is over whose answer nobody waits for.
LOOK_EVERY_S = 0.5
# One of this many quiet connections is closed to make room; several at once, as finding them takes a look at all.
MAKE_ROOM = 32
AWAY = "the server is starting; try again in a moment"
# What Cog's server itself answers while it sets up.
STARTING = b'{"status":"STARTING"}'


class Front:
    """Serves a listening socket from a thread of its own, until `close`."""

    def __init__(self, listener: socket.socket, rules: Rules) -> None:
        """Until `pass_to` names Cog's server, and while it is away, clients are told to try again."""
        self.rules, self._listener = rules, listener
        self.loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        self.loop.set_exception_handler(_report)
        self.held_bytes = 0
        self.is_draining = False
        self._clients: dict[Client, None] = {}
        self._cog = Pool()
        self._gate = Gate(rules.slots // 2)
        self._tasks: dict[Client, asyncio.Task[None]] = {}
        self._looking: set[asyncio.Task[None]] = set()
        self._checkers = ThreadPoolExecutor(CHECKERS, thread_name_prefix="front")
        self._server: Any = None
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether clients are served."""
        return self._thread.is_alive()

    @property
    def is_busy(self) -> bool:
        """Whether a request is being answered."""
        return self.is_alive and any(client.asked is not None for client in list(self._clients))

    def pass_to(self, host: str, port: int) -> None:
        """Pass requests on to the server at this address."""
        self._cog.address = (host, port)

    def drain(self) -> None:
        """Take no more connections and requests, and answer those under way."""
        self.loop.call_soon_threadsafe(self._drain)

    def close(self) -> None:
        """End at once, and free the port."""
        if self.is_alive:
            self.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self._serve())
        finally:
            self._checkers.shutdown(wait=False, cancel_futures=True)

    async def _serve(self) -> None:
        self._server = await self.loop.create_server(lambda: Client(self), sock=self._listener, backlog=BACKLOG)
        sweeping = self.loop.create_task(self._sweep())
        stopping = self.loop.create_task(self._stop.wait())
        await asyncio.wait([sweeping, stopping], return_when=asyncio.FIRST_COMPLETED)
        for client in list(self._clients):
            client.transport.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others)
        if not sweeping.cancelled():
            sweeping.result()

    def _drain(self) -> None:
        self.is_draining = True
        self._server.close()
        for client in list(self._clients):
            if client.asked is None:
                client.transport.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_EVERY_S)
            now = self.loop.time()
            for client in list(self._clients):
                if client.is_late(now):
                    client.transport.abort()

    def joined(self, client: Client) -> None:
        """Take a connection. If there are too many, close some that have been quiet longest."""
        if len(self._clients) >= self.rules.connections:
            quiet = [each for each in self._clients if each.asked is None]
            if not quiet:
                problem = "busy: there are as many connections as MAX_CONNECTIONS lets there be; try again in a moment"
                client.transport.write(Refusal(503, problem).response(True))
                return client.transport.close()
            for each in sorted(quiet, key=lambda each: each.since)[: len(quiet) // MAKE_ROOM + 1]:
                self._clients.pop(each)
                each.transport.abort()
        self._clients[client] = None

    def left(self, client: Client) -> None:
        """Forget a connection, and have Cog's server cancel its request."""
        self._clients.pop(client, None)
        if task := self._tasks.pop(client, None):
            task.cancel()
        upstream, client.upstream = client.upstream, None
        if upstream is not None:
            upstream.abort()
        if client.asked is not None:
            self._give_back(client.asked, is_over=upstream is None)

    def ask(self, client: Client, request: Head) -> None:
        """Have a request answered; a small one without a task of its own."""
        if self.is_draining:
            client.refuse(Refusal(503, "the server ends; send the request again"))
        elif not request.is_prediction:
            self._send_now(client, request, b"")
        elif len(request.body) > SMALL_BYTES:
            self._begin(client, self._send_large(client, request))
        else:
            try:
                checked = rebuild(request.body, request.id, self.rules, request.is_async)
            except Refusal as refusal:
                return client.refuse(refusal)
            if checked.is_large or request.is_async:
                self._begin(client, self._send_large(client, request, checked))
            else:
                self._send_now(client, request, b"".join(checked.parts))

    def answered(self, client: Client, request: Head | None) -> None:
        """Release what an answered or lost request held."""
        upstream, client.upstream = client.upstream, None
        if upstream is not None:
            self._cog.keep(upstream)
        if request is not None:
            is_accepted = upstream is not None and upstream.head[9:12] == b"202"
            self._give_back(request, is_over=not is_accepted)

    def _begin(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        self._tasks[client] = self.loop.create_task(self._finish(client, work))

    async def _finish(self, client: Client, work: Coroutine[Any, Any, None]) -> None:
        refusal: Refusal | None = None
        try:
            await work
        except Refusal as error:
            refusal = error
        except OSError:
            refusal = Refusal(503, AWAY)
        except Exception as error:
            _report(self.loop, {"exception": error})
            client.transport.abort()
        self._tasks.pop(client, None)
        if refusal is not None:
            self._away(client) if refusal.sentence == AWAY else client.refuse(refusal)

    def _away(self, client: Client) -> None:
        """Answer for Cog's server while it is away: its health as it would while it sets up, all else with 503."""
        if client.asked is not None and client.asked.path == "/health-check":
            client.write(answer(200, STARTING, {}, has_body=client.asked.method != "HEAD"))
            client.answered()
        else:
            client.refuse(Refusal(503, AWAY))

    async def _send_large(self, client: Client, request: Head, checked: Checked | None = None) -> None:
        if checked is None:
            work = partial(rebuild, request.body, request.id, self.rules, request.is_async)
            checked = await self.loop.run_in_executor(self._checkers, work)
        await self._gate.enter()
        request.place = checked.name
        try:
            upstream = await self._cog.get()
        except BaseException:
            self._give_back(request, is_over=True)
            raise
        client.upstream, upstream.is_writing = upstream, True
        upstream.expect(client)
        parts = [memoryview(part) for part in checked.parts]
        upstream.write(request.passed_on(sum(map(len, parts))))
        for part in parts:
            for start in range(0, len(part), PIECE_BYTES):
                if client.upstream is not upstream:
                    return
                upstream.write(part[start : start + PIECE_BYTES])
                await upstream.can_write.wait()
        upstream.is_writing = False
        client.let_go(request)

    def _send_now(self, client: Client, request: Head, body: bytes) -> None:
        async def connect_and_send() -> None:
            self._send(client, request, await self._cog.connect(), body)

        if upstream := self._cog.take():
            self._send(client, request, upstream, body)
        else:
            self._begin(client, connect_and_send())

    def _send(self, client: Client, request: Head, upstream: Upstream, body: bytes) -> None:
        client.upstream = upstream
        upstream.expect(client, request.method != "HEAD")
        upstream.write(request.passed_on(len(body)) + body)

    def _give_back(self, request: Head, is_over: bool) -> None:
        """Give back a large prediction's place when it is over."""
        place, request.place = request.place, ""
        if not place:
            return
        if is_over:
            return self._gate.leave()
        looking = self.loop.create_task(self._look_until_over(place))
        self._looking.add(looking)
        looking.add_done_callback(self._looking.discard)

    async def _look_until_over(self, name: str) -> None:
        try:
            is_over = False
            while not is_over:
                await asyncio.sleep(LOOK_EVERY_S)
                is_over = not await self._cog.is_under_way(name)
        except OSError:
            pass  # the server is gone, and all its predictions
        finally:
            self._gate.leave()


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log where an exception was raised, without its words, which may be a client's."""
    error = context.get("exception")
    if isinstance(error, OSError):  # a client has gone, or no file descriptor is left
        return
    where = "".join(traceback.format_tb(error.__traceback__)) if error else context.get("message")
    logger.error("the front failed at a connection: %s\n%s", type(error).__name__, where)
