"""The APIs on a port of their own, served by a thread of the process that runs the service."""

import asyncio
import contextlib
import ipaddress
import logging
import socket
import threading
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

import settings
from api.app import make_app
from api.bodies import Bodies
from api.endpoint import Host
from api.metrics import Metrics
from service import Service
from settings import access
from settings.listening import BACKLOG, listen

logger = logging.getLogger(__name__)

MAX_BODY_MB = 32
# 16 for each string, list and object, and 1 for each number: enough for the ids of 2,048 texts of 480 tokens, or for
# 2,048 of Gemini's requests with all their fields.
MAX_BODY_VALUES = 3 << 18
MAX_BODIES_MB = 512
# How long a client may take to send a request, and to read some more of its answer. Between two requests a connection
# is kept for KEEP_ALIVE_S.
RECEIVE_TIMEOUT_S = 60.0
KEEP_ALIVE_S = 75
# uvicorn's parser does not limit headers itself.
MAX_HEAD_BYTES = 64 * 1024
# Requests that a client may send on a connection before it has the answer to an earlier request.
MAX_PIPELINED = 32
# How long requests under way may take once the server is told to end. Cog's server allows ten seconds.
DRAIN_TIMEOUT_S = 60


class ApiServer:
    """Serves the APIs of one service in a thread, until `close`."""

    def __init__(self, service: Service, host: str, port: int, listener: socket.socket | None = None) -> None:
        """Listen on the port, unless `listener` does already. Until the service has started, requests get 503.

        Reads API_KEY, API_ORIGINS, API_BODY_MB, API_BODY_VALUES and API_BODIES_MB. Raises SettingError for a port that
        is not available, and for an invalid setting.
        """
        api_key, origins = access.key(), access.origins()
        bodies = Bodies(
            settings.count("API_BODY_MB", MAX_BODY_MB) << 20,
            settings.count("API_BODY_VALUES", MAX_BODY_VALUES),
            settings.count("API_BODIES_MB", MAX_BODIES_MB) << 20,
        )
        shared = Host(service, api_key, bodies, Metrics(service))
        self._socket = listener or listen(host, port, "API_PORT", "API_HOST")
        if api_key is None and not _is_local(host):
            logger.warning("anyone who can reach %s:%d may use it, as API_KEY is not set", host, port)
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
        # Runs before Python ends its thread pools, which requests under way may still need.
        threading._register_atexit(self.close)  # type: ignore[attr-defined]
        logger.info("the other APIs: http://%s:%d, described at /docs", host, port)

    def close(self) -> None:
        """Accept no more requests, finish those under way within DRAIN_TIMEOUT_S, and free the port."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, with limits on heads, and on the time that a client may take to send a request.

    Offers to upgrade the protocol are declined. Java's clients offer HTTP/2 with each request, and the parser, as
    uvicorn uses it, would lose the body after the offer.
    """

    _head_bytes = 0
    """Bytes since the request began, or since the last part of its body: the head, chunk lengths, trailers."""
    _is_receiving = False
    _timer: asyncio.TimerHandle | None = None
    _problem = "This is not a request of HTTP/1.1."

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_request()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._is_receiving = True
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserError:
            self.send_400_response(self._problem)
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is larger than {MAX_HEAD_BYTES} bytes.")
        if self._timer is None and self._is_receiving:  # most requests come whole
            self._await_request()

    def on_headers_complete(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            self._problem = f"More than {MAX_PIPELINED} requests came before their answers; wait for some."
            raise ValueError(self._problem)
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._head_bytes, self._is_receiving = 0, False
        self._stop_waiting()
        if self.cycle.response_complete:  # refused before its body came; uvicorn would wait forever for the next
            self._await_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _decline(self, rest: bytes) -> None:
        """Read the request again without its offer, and then the rest of the data."""
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


def _is_local(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"
