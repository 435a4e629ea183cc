"""Nobody holds up the others: while a server answers requests made to keep it busy, others are answered at once."""

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from api.app import OPERATIONS
from tests.support.apis import MODEL, Running, running_apis
from tests.support.hostile import bodies_of
from tests.support.lag import lag

pytestmark = pytest.mark.fuzz
# A server that does nothing else answers /live in a millisecond or two. The tests' machine may be busy with much else.
MOST_LAG_S = 0.25
TRIES = 4
CLIENT_LEAVES_S = 1.0
# A server of the small checkpoint has some 330 MB when it starts; a body of 32 MB may be there four times.
MOST_GROWTH_BYTES = 400 << 20
PATHS = [each.path.replace("{model:path}", MODEL) for each in OPERATIONS if each.asks is not None]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with running_apis() as server:
        yield server


def shortest_lag_s(server: Running, attack: Callable[[], None]) -> float:
    """Return how long an attack holds up others: the least of some tries, as other things hold them up, too."""
    longest: list[float] = []
    while len(longest) < TRIES and (not longest or longest[-1] > MOST_LAG_S):
        with lag(server.address) as found:
            attack()
        longest.append(found.longest_s)
    return min(longest)


def post_and_leave(server: Running, path: str, body: bytes) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=CLIENT_LEAVES_S)
    with contextlib.suppress(OSError), contextlib.closing(connection):
        connection.request("POST", path, body)
        answer = connection.getresponse()
        assert answer.status < 500, answer.read()
        answer.read()


@pytest.mark.parametrize("path", PATHS)
def test_no_body_holds_up_others(running: Running, path: str) -> None:
    slow = {}
    for name, body in bodies_of(path):
        seconds = shortest_lag_s(running, lambda body=body: post_and_leave(running, path, body))  # type: ignore[misc]
        if seconds > MOST_LAG_S:
            slow[name] = seconds
    assert not slow


FLOODS = {
    "requests before their answers": b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n" * 40_000,
    "fields in the URL": (b"POST /embed?%s HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n{}" % (b"a&" * 30_000)) * 20,
    "headers": (b"GET /live HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 9_000 + b"\r\n") * 20,
}


@pytest.mark.parametrize("flood", FLOODS)
def test_no_flood_of_requests_holds_up_others(running: Running, flood: str) -> None:
    def send() -> None:
        with socket.create_connection(running.address, timeout=CLIENT_LEAVES_S) as connection:
            sending = threading.Thread(target=lambda: _send(connection, FLOODS[flood]))
            sending.start()
            with contextlib.suppress(OSError):
                while connection.recv(1 << 20):
                    pass
            sending.join()

    assert shortest_lag_s(running, send) < MOST_LAG_S


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)
