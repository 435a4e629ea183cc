"""How long a client may take to send a request: a timer runs while a part of one is missing."""

import http.client
import socket

import httpx
import pytest

from api.server import LimitedProtocol
from tests.support.servers import eventually


@pytest.mark.parametrize(
    ("parts", "timers"),
    [
        ([b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"] * 3, 0),  # each comes whole
        ([b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /live HTTP/1.1\r\nHo", b"st: x\r\n\r\n"], 1),
        ([b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n", b"\r\n"], 1),  # the beginning of nothing, which must not last
    ],
)
def test_only_a_request_that_comes_in_parts_starts_a_timer(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, parts: list[bytes], timers: int
) -> None:
    connections: list[LimitedProtocol] = []
    started: list[LimitedProtocol] = []
    wait, receive = LimitedProtocol._await_request, LimitedProtocol.data_received

    def await_request(self: LimitedProtocol) -> None:
        started.append(self)
        wait(self)

    def data_received(self: LimitedProtocol, data: bytes) -> None:
        connections.append(self)
        receive(self, data)

    monkeypatch.setattr(LimitedProtocol, "_await_request", await_request)
    monkeypatch.setattr(LimitedProtocol, "data_received", data_received)

    def send(connection: socket.socket, part: bytes) -> None:
        before = len(connections)
        connection.sendall(part)
        eventually(lambda: len(connections) > before, "the part is read")
        if part.endswith(b"\r\n\r\n"):  # the whole answer, which may come in pieces
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.read() and response.status == 200

    with socket.create_connection((client.base_url.host, client.base_url.port or 80)) as connection:
        for part in parts:
            send(connection, part)
        assert started.count(connections[0]) == 1 + timers  # the first is the new connection's
        assert (connections[0]._timer is not None) == (parts[-1] == b"\r\n")
