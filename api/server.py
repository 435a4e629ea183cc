"""The APIs on a port of their own, served by a thread of the process that has the service."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import sys
import threading
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import settings
from api import access
from api.app import make_app
from api.endpoint import Host
from api.metrics import Metrics
from service import Service

logger = logging.getLogger(__name__)

MAX_BODY_MB = 32
BACKLOG = 2048
# A client has this long to send a request, and to read some more of its answer; between two requests a connection is
# kept for KEEP_ALIVE_S.
RECEIVE_TIMEOUT_S = 60.0
KEEP_ALIVE_S = 75
# uvicorn's parser of headers has no limit of its own.
MAX_HEAD_BYTES = 64 * 1024
# Requests under way when the server is told to end have this long; in Cog's server ten seconds, its own limit.
DRAIN_TIMEOUT_S = 60


class DoorError(RuntimeError):
    """The APIs cannot be opened as the settings say: which setting, and the remedy."""


class Doors:
    """The APIs of one service, open from the start of the thread that serves them until `close`."""

    def __init__(self, service: Service, host: str, port: int, named_by: str = "API_PORT") -> None:
        """Take the port, or raise DoorError, which says what names it. The service may start later: until then 503.

        The environment variables API_KEY, API_ORIGINS and API_BODY_MB are read here, or raise SettingError.
        """
        api_key, origins = access.key(), access.origins()
        shared = Host(service, api_key, settings.number("API_BODY_MB", MAX_BODY_MB) << 20, Metrics(service))
        self._socket = _listen(host, port, named_by)
        if api_key is None and not _is_local(host):
            logger.warning("everybody who reaches %s:%d may embed there, as API_KEY is not set", host, port)
        config = uvicorn.Config(
            make_app(shared, origins),
            loop="uvloop",
            http=LimitedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_TIMEOUT_S,
            server_header=False,
            proxy_headers=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="api", daemon=True)
        self._thread.start()
        # Before Python ends its pools of threads, which requests under way may still need.
        threading._register_atexit(self.close)  # type: ignore[attr-defined]
        logger.info("OpenAI, Gemini, TEI, Ollama and Cohere clients: http://%s:%d, described at /docs", host, port)

    def close(self) -> None:
        """Take no more requests, finish those under way within DRAIN_TIMEOUT_S, and free the port."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with limits on what is not a body and on the time that a client may take to send a request.

    Offers of other protocols are declined. Java's clients offer HTTP/2 with each request, and the parser, as uvicorn
    uses it, would lose the body behind the offer.
    """

    _head_bytes = 0
    """Bytes since the request began or since the last part of its body: a head, the lengths of chunks, trailers."""
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._timer is None:
            self._await_request()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response("This is not a request of HTTP/1.1.")
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._head_bytes = 0
        self._stop_waiting()
        if self.cycle.response_complete:  # refused before its body came: uvicorn waits for the next without end
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _decline(self, rest: bytes) -> None:
        """Read the request again without its offer, and the rest of what has come behind it."""
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if method == b"CONNECT":
            return self.send_400_response("This server is no proxy.")
        head = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        head += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.data_received(b"\r\n".join([*head, b"", rest]))

    def _await_request(self) -> None:
        self._timer = self.loop.call_later(RECEIVE_TIMEOUT_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        self.transport.abort()


def _listen(host: str, port: int, named_by: str) -> socket.socket:
    """Return a socket that listens. Raises DoorError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if port not in settings.PORTS:
            raise OverflowError(f"a port is {settings.PORTS_IN_WORDS}")
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if sys.platform == "linux":  # connections inherit it; without it a client that reads nothing is never dropped
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(RECEIVE_TIMEOUT_S * 1000))
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else error
        raise DoorError(
            f"{named_by}: {host[:80]}:{port} cannot be listened on ({reason}); choose a port that is free, and an "
            "address of this machine"
        ) from None
    return listener


def _is_local(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
