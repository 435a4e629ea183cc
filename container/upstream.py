"""Connections to Cog's server. Each carries one request at a time, and its answer goes to the client as it comes."""

import asyncio
import re
from typing import Any, Protocol

import httptools

from container.requests import Head

# Idle connections kept for later requests.
MOST_IDLE = 256
# No prediction can begin with this input: asking after one that is over begins none, and is answered with 422.
NO_INPUT = b'{"input":[]}'
HEAD_END = b"\r\n\r\n"
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
BODILESS = (b"204", b"304")


class Waiting(Protocol):
    """A client that waits for an answer: it gets the answer's parts, and is told that it is whole or ends too early."""

    def write(self, data: bytes) -> None: ...

    def answered(self) -> None: ...

    def lost(self, begun: bool) -> None: ...


class Upstream(asyncio.Protocol):
    """Sends requests to Cog's server and passes on its answers, counting bytes to find the end of each."""

    def __init__(self) -> None:
        self.is_usable = True
        """Whether another request may follow when the last one is answered."""
        self.is_writing = False
        """Whether part of the last request is still to be sent."""
        self.head = b""
        """The status line and headers of the last answer."""
        self.can_write = asyncio.Event()
        self.can_write.set()
        self._transport: Any = None
        self._client: Waiting | None = None
        self._has_body = True
        self._left: int | None = None
        """Bytes of the answer still to come; None until its head is whole."""
        self._buffer = b""
        self._chunks: httptools.HttpResponseParser | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def expect(self, client: Waiting, has_body: bool = True) -> None:
        """Hand the next answer to a client; one to HEAD has no body."""
        self._client, self._has_body = client, has_body
        self.head, self._left, self._buffer, self._chunks = b"", None, b"", None

    def write(self, data: bytes | memoryview) -> None:
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if self._client is None:
            return self.abort()  # nobody asked
        if self._left is None:
            self._buffer = data = self._buffer + data if self._buffer else data
            end = data.find(HEAD_END) + len(HEAD_END)
            if end < len(HEAD_END):
                return
            self._buffer = b""
            self._left = end + self._body_bytes(data[:end])
        client = self._client
        if self._chunks is not None:
            client.write(data)
            self._chunks.feed_data(data)
        else:
            self._left -= len(data)
            client.write(data)
            if self._left <= 0:
                self._finish()

    def _body_bytes(self, head: bytes) -> int:
        """Return the length of the body that its head tells, 0 if it tells none."""
        self.head = head
        if CLOSES.search(head):
            self.is_usable = False
        if not self._has_body or head[9:12] in BODILESS:
            return 0
        if length := LENGTH.search(head):
            return int(length[1])
        self._chunks = httptools.HttpResponseParser(self)
        return 0

    def on_message_complete(self) -> None:
        """Finish a chunked answer; the parser calls this."""
        self._finish()

    def _finish(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.answered()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_usable = False
        self.can_write.set()
        client, self._client = self._client, None
        if client is not None:
            client.lost(self._left is not None)

    def abort(self) -> None:
        """Close the connection at once; Cog's server then cancels the request."""
        self.is_usable, self._client = False, None
        self.can_write.set()
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self.can_write.clear()

    def resume_writing(self) -> None:
        self.can_write.set()

    def pause_reading(self) -> None:
        """Hold back the rest of the answer while the client does not read it."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()


class Pool:
    """The idle connections to Cog's server at `address`."""

    def __init__(self) -> None:
        self.address = ("127.0.0.1", 0)
        self._idle: list[Upstream] = []

    def take(self) -> Upstream | None:
        """Return an idle connection, None if there is none."""
        while self._idle:
            if (upstream := self._idle.pop()).is_usable:
                return upstream
        return None

    async def connect(self) -> Upstream:
        """Return a new connection. Raises OSError."""
        _, upstream = await asyncio.get_running_loop().create_connection(Upstream, *self.address)
        return upstream

    async def get(self) -> Upstream:
        """Return an idle connection or a new one. Raises OSError."""
        return self.take() or await self.connect()

    def keep(self, upstream: Upstream) -> None:
        """Take back a connection whose request is answered."""
        if upstream.is_usable and not upstream.is_writing and len(self._idle) < MOST_IDLE:
            self._idle.append(upstream)
        else:
            upstream.abort()

    async def is_under_way(self, name: str) -> bool:
        """Return whether the prediction with this id is being computed. Raises OSError."""
        reader, writer = await asyncio.open_connection(*self.address)
        try:
            asking = Head(method="PUT", path=f"/predictions/{name}")
            writer.write(asking.passed_on(len(NO_INPUT)) + NO_INPUT)
            status_line = await reader.readline()
        finally:
            writer.close()
        if not status_line:
            raise ConnectionResetError
        return status_line[9:12] == b"202"
