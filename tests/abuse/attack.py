"""What an attack is, and how it is carried out: clients that send the same requests over and over, or leave."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Call:
    """A request to the port of Cog's API (`cog`) or of the others (`apis`)."""

    port: str
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: JSON)


@dataclass(frozen=True)
class Attack:
    """Clients that send `calls` in turn: each waits for the answers, or leaves `leaves_s` seconds after its request."""

    kind: str
    name: str
    calls: Sequence[Call]
    clients: int = 4
    leaves_s: float | None = None
    refused: str | None = None
    """What every answer says; None for an attack that may succeed, in part or whole."""

    def run(self, urls: dict[str, str], seconds: float) -> "Outcome":
        """Attack for so many seconds; return how the calls were answered. All clients have ended then."""
        outcome, until = Outcome(), time.monotonic() + seconds
        threads = [threading.Thread(target=self._client, args=(i, urls, until, outcome)) for i in range(self.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return outcome

    def _client(self, number: int, urls: dict[str, str], until: float, outcome: "Outcome") -> None:
        while (left := until - time.monotonic()) > 0:
            call = self.calls[number % len(self.calls)]
            number += 1
            try:
                # Nobody waits beyond the end: the rest of the answers are of clients that leave.
                patience = max(min(left, self.leaves_s or left), 0.01)
                with closing(HTTPConnection(urlsplit(urls[call.port]).netloc, timeout=patience)) as connection:
                    connection.request(call.method, call.path, call.body, call.headers)
                    answer = connection.getresponse()
                    outcome.add(str(answer.status), answer.read(4_000).decode(errors="replace"))
            except (OSError, HTTPException):
                outcome.add("left", "")


@dataclass(frozen=True)
class HalfRequests(Attack):
    """Clients that open `connections` connections each, send `sent` on each of them, and then nothing more."""

    port: str = "apis"
    connections: int = 1
    sent: bytes = b""

    def _client(self, number: int, urls: dict[str, str], until: float, outcome: "Outcome") -> None:
        address = urlsplit(urls[self.port])
        with ExitStack() as stack:
            for _ in range(self.connections):
                with suppress(OSError):  # it may be refused, or closed
                    connection = stack.enter_context(socket.create_connection((address.hostname, address.port), 10))
                    connection.settimeout(0.5)
                    outcome.add("opened", "")
                    connection.sendall(self.sent)
            time.sleep(max(0.0, until - time.monotonic()))


@dataclass
class Outcome:
    """How many calls were answered with each status, and one answer of each."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: str, said: str) -> None:
        """Count an answer."""
        with self._lock:
            self.counts[status] += 1
            self.examples.setdefault(status, said)
