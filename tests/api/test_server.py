"""The port of the APIs: who may use it, and how long a client may take to send a request."""

import http.client
import logging
import socket

import httpx
import pytest

from api.server import ApiServer, LimitedProtocol
from container.server import free_port
from service import Service
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


@pytest.mark.parametrize(
    ("host", "key", "warned"),
    [("0.0.0.0", "", True), ("0.0.0.0", "a secret", False), ("127.0.0.1", "", False), ("localhost", "", False)],
)
def test_who_may_embed_is_said_where_other_machines_reach_the_server(
    service: Service,
    host: str,
    key: str,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("API_KEY", key)
    port = free_port()
    with caplog.at_level(logging.WARNING):
        apis = ApiServer(service, host, port)
    try:
        said = f"anyone who can reach {host}:{port} may use it, as API_KEY is not set"
        assert (said in caplog.text) == warned == bool(caplog.records)
        asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
        reached = host.replace("0.0.0.0", "127.0.0.1")
        answer = httpx.options(f"http://{reached}:{port}/v1/embeddings", headers=asked)
        assert not [name for name in answer.headers if name.startswith("access-control")]
    finally:
        apis.close()
