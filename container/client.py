"""A client's connection: HTTP/1.1, with limits on the size of a request and on the time it may take to arrive."""

import asyncio
from collections import deque
from typing import Any, Protocol

import httptools

from container.predictions import SMALL_BYTES
from container.refusal import Refusal
from container.requests import KNOWN, Head, check_head
from container.rules import Rules
from container.upstream import Upstream

# The parser has no limit of its own.
MAX_HEAD_BYTES = 64 * 1024
# The time for sending a request, plus a second for each SLOWEST_BYTES; and for reading some of an answer.
RECEIVE_TIMEOUT_S = 60.0
SLOWEST_BYTES = 256 * 1024
KEEP_ALIVE_S = 75.0
# After a refusal the rest of the request is read for this long: a client sees no answer while it still sends.
LINGER_S = 5.0
# Requests that a client may send ahead of answers.
MOST_AHEAD = 128
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Host(Protocol):
    """The front, as its connections use it."""

    loop: asyncio.AbstractEventLoop
    rules: Rules
    held_bytes: int
    is_draining: bool

    def joined(self, client: "Client") -> None: ...

    def left(self, client: "Client") -> None: ...

    def ask(self, client: "Client", request: Head) -> None: ...

    def answered(self, client: "Client", request: Head | None) -> None: ...


class Client(asyncio.Protocol):
    """Reads requests, has them checked and answered, and writes the answers in the requests' order."""

    def __init__(self, front: Host) -> None:
        self._front = front
        self.transport: Any = None
        self.parser = httptools.HttpRequestParser(self)
        self.request = Head()
        self.asked: Head | None = None
        """The request that is being answered."""
        self.upstream: Upstream | None = None
        self.since = front.loop.time()
        """When it began what it now does: wait for a request, receive one, or linger."""
        self._pending: deque[Head] = deque()
        self._head_bytes = 0
        self._is_receiving = self._is_lingering = self._is_paused = self._has_answered = False
        self._paused_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._front.joined(self)

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            return
        if not self._is_receiving:
            self._is_receiving, self.since = True, self._front.loop.time()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            if not self._is_lingering:
                self._refuse_now(Refusal(400, "This is not a request of HTTP/1.1."))
        if self._head_bytes > MAX_HEAD_BYTES and not self._is_lingering:
            self._refuse_now(Refusal(431, f"The head of the request is larger than {MAX_HEAD_BYTES:,} bytes."))

    def on_url(self, url: bytes) -> None:
        self.request.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in KNOWN:
            headers = self.request.headers
            if name in headers and name != b"accept":
                self.request.repeated = name.decode("latin-1")
            headers[name] = value

    def on_headers_complete(self) -> None:
        if self._is_lingering or self.parser.should_upgrade():
            return
        request = self.request
        request.method = self.parser.get_method().decode("latin-1")
        try:
            check_head(request, self._front.rules)
            self._check_length(request)
        except Refusal as refusal:
            request.refusal = refusal
            length = request.headers.get(b"content-length", b"0")
            if b"expect" in request.headers or b"transfer-encoding" in request.headers or len(length) > 5:
                self._refuse_now(refusal)
        else:
            if b"expect" in request.headers and self.asked is None:
                self.transport.write(CONTINUE)

    def _check_length(self, request: Head) -> None:
        length = request.headers.get(b"content-length")
        if length is not None and int(length) > self._front.rules.body_bytes:
            raise _too_large(self._front.rules.body_bytes)

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        request = self.request
        if request.refusal is not None or self._is_lingering:
            return
        if not request.body:
            request.body = body
        else:
            if isinstance(request.body, bytes):
                request.body = bytearray(request.body)
            request.body += body
        if len(request.body) > SMALL_BYTES:
            self._hold(request)

    def _hold(self, request: Head) -> None:
        """Count a large body among the held bytes, and refuse it if it, or all of them, are too many."""
        front, size = self._front, len(request.body)
        front.held_bytes += size - request.held_bytes
        request.held_bytes = size
        if size > front.rules.body_bytes:
            self._refuse_now(_too_large(front.rules.body_bytes))
        elif front.held_bytes > front.rules.bodies_bytes:
            problem = "the server holds as many large requests as COG_BODIES_MB lets it; try again in a moment"
            self._refuse_now(Refusal(503, problem))

    def let_go(self, request: Head) -> None:
        """Drop a request's body, and count it no longer."""
        self._front.held_bytes -= request.held_bytes
        request.held_bytes, request.body = 0, b""

    def on_message_complete(self) -> None:
        if self._is_lingering or self.parser.should_upgrade():
            return
        request, self.request = self.request, Head()
        request.keeps_alive = self.parser.should_keep_alive()
        self._head_bytes, self._is_receiving = 0, False
        if self.asked is None and not self._pending and self._paused_since is None:
            return self._ask(request)
        if len(self._pending) >= MOST_AHEAD:
            return self._refuse_now(Refusal(429, "busy: too many requests were sent ahead; wait for answers"))
        self._pending.append(request)
        if not self._is_paused:  # no more is read until it is its turn
            self._is_paused = True
            self.transport.pause_reading()

    def _ask(self, request: Head) -> None:
        self.asked, self._has_answered = request, False
        if request.refusal is not None:
            self.refuse(request.refusal)
        else:
            self._front.ask(self, request)

    def refuse(self, refusal: Refusal) -> None:
        """Answer the request instead of Cog's server."""
        assert self.asked is not None
        is_last = not self.asked.keeps_alive or self._front.is_draining
        self.write(refusal.response(is_last, self.asked.method != "HEAD"))
        self.answered()

    def _refuse_now(self, refusal: Refusal) -> None:
        """Answer a request before all of it has come, and close the connection."""
        self._is_lingering, self.since = True, self._front.loop.time()
        self.request, request = Head(), self.request
        self.let_go(request)
        if self.asked is not None or self._pending:  # earlier answers are still due; this one is dropped
            return
        self.asked, self._has_answered = request, False
        self.write(refusal.response(True, request.method != "HEAD"))
        self.asked = None
        self.transport.write_eof()

    def write(self, data: bytes) -> None:
        """Send a part of an answer."""
        if not self._has_answered:
            self._has_answered = True
            if self.asked is not None and self.asked.allows:
                status, _, rest = data.partition(b"\r\n")
                data = status + b"\r\n" + self.asked.allows + rest
        self.transport.write(data)

    def answered(self) -> None:
        """Go on to the next request."""
        request, self.asked = self.asked, None
        if self._paused_since is not None and self.upstream is not None:
            self.upstream.resume_reading()
        self._front.answered(self, request)
        if request is not None:
            self.let_go(request)
        self.since = self._front.loop.time()
        if self._is_lingering or request is None or not request.keeps_alive or self._front.is_draining:
            return self.transport.close()
        self._next()

    def _next(self) -> None:
        """Go on to the next request that has come, unless the client has stopped reading answers."""
        if self._pending and self.asked is None and self._paused_since is None:
            self._ask(self._pending.popleft())
        if self._is_paused and not self._pending:
            self._is_paused = False
            self.transport.resume_reading()

    def lost(self, begun: bool) -> None:
        """Say that Cog's server ended; if it did so within its answer, just close the connection."""
        if begun or self.asked is None:
            return self.transport.abort()
        self.refuse(Refusal(503, "the server ended before it had answered, and starts again; send the request again"))

    def _decline(self, rest: bytes) -> None:
        """Read the request again without its offer of another protocol, then what came behind it."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        request, self.request = self.request, Head()
        if method == b"CONNECT":
            return self._refuse_now(Refusal(400, "This server is no proxy."))
        self.parser = httptools.HttpRequestParser(self)
        head = [b"%s %s HTTP/%s" % (method, request.target, version)]
        head += [b"%s: %s" % header for header in request.headers.items()]
        self.data_received(b"\r\n".join([*head, b"", rest]))

    def connection_lost(self, exc: Exception | None) -> None:
        for request in (self.request, self.asked, *self._pending):
            if request is not None:
                self.let_go(request)
        self._pending.clear()
        self._front.left(self)

    def pause_writing(self) -> None:
        self._paused_since = self._front.loop.time()
        if self.upstream is not None:
            self.upstream.pause_reading()

    def resume_writing(self) -> None:
        self._paused_since = None
        if self.upstream is not None:
            self.upstream.resume_reading()
        self._next()

    def is_late(self, now: float) -> bool:
        """Return whether the client takes too long."""
        if self._paused_since is not None and now - self._paused_since > RECEIVE_TIMEOUT_S:
            return True
        if self._is_lingering:
            return now - self.since > LINGER_S and self.asked is None
        if self.asked is not None:
            return False
        allowed = RECEIVE_TIMEOUT_S + len(self.request.body) / SLOWEST_BYTES
        return now - self.since > (allowed if self._is_receiving else KEEP_ALIVE_S)


def _too_large(limit: int) -> Refusal:
    return Refusal(413, f"body: it is larger than {limit:,} bytes; send fewer texts at once, or set COG_BODY_MB")
