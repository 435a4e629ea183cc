"""The front in this process, with rules of a test's own, before a real server of Cog's."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx

from container.coglet import schema
from container.front import Front
from container.rules import read_rules
from container.server import Server, free_port
from settings.listening import listen

TOY = {"COG_PREDICT_TYPE_STUB": "tests/support/toy_predictor.py:Predictor", "COG_MAX_CONCURRENCY": "8"}
HEAD = b"POST /predictions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Fronted:
    """A front and where it listens."""

    front: Front
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect a socket to."""
        return "127.0.0.1", self.port

    def post(self, body: Any, path: str = "/predictions", method: str = "POST", **headers: str) -> httpx.Response:
        """Send JSON; names of headers have _ for -."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        return httpx.request(method, self.url + path, json=body, headers=sent, timeout=60)


@contextmanager
def fronted(cog: Server | int, **rules: Any) -> Iterator[Fronted]:
    """Run a front before a server, or before the port of one that may come, for the length of a with block."""
    port = cog if isinstance(cog, int) else httpx.URL(cog.url).port
    assert port is not None
    listener = listen("127.0.0.1", free_port())
    front = Front(listener, replace(read_rules(schema()), **rules))
    front.pass_to("127.0.0.1", port)
    try:
        yield Fronted(front, listener.getsockname()[1])
    finally:
        front.close()


def whole(body: bytes, head: bytes = HEAD) -> bytes:
    """Return a request with this body."""
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
