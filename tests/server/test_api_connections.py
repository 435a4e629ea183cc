"""Clients of the other APIs that are slow, that vanish, and that come by the thousand: others are served as before."""

import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.apis import FAULTY, Running, running_apis
from tests.support.servers import eventually, held
from tests.support.sockets import CHUNKED, HEAD, asking, chunk, is_closed

PATIENCE_S = 2.0
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="it is Linux that can do it, or that tells")
WHOLE = b"GET /api/version HTTP/1.1\r\nHost: x\r\n\r\n"
UNKNOWN = HEAD.replace(b"/v1/embeddings", b"/unknown") + b"Content-Length: 5\r\n\r\n"


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that makes the next batch of `server` slow."""
    return tmp_path_factory.mktemp("server") / "fault"


@pytest.fixture(scope="module")
def server(fault: Path) -> Iterator[Running]:
    """A server that waits PATIENCE_S for its clients."""
    settings = {"FAULT": str(fault), "PATIENCE_S": str(PATIENCE_S), "CACHE_MB": "0"}
    with running_apis(settings, FAULTY) as running:
        yield running


def answers(server: Running, texts: list[str]) -> bool:
    answer = httpx.post(f"{server.url}/embed", json={"inputs": texts}, timeout=30)
    return answer.status_code == 200 and len(answer.json()) == len(texts)


# What clients send before they stop, a part after each answer.
STOPPED = {
    "nothing": [],
    "half a head": [HEAD],
    "half a body": [HEAD + b"Content-Length: 100\r\n\r\n{"],
    "half of the chunks": [HEAD + CHUNKED + b"\r\n" + chunk(b"{")],
    "half a second request": [WHOLE, HEAD],
    "one and a half at once": [WHOLE + HEAD],
    "no second request": [WHOLE],
    "a body that nobody asked for": [UNKNOWN, b"12345"],
}


def test_clients_that_stop_sending_are_dropped(server: Running) -> None:
    with ExitStack() as stack:
        clients = {name: stack.enter_context(socket.create_connection(server.address)) for name in STOPPED}
        for name, parts in STOPPED.items():
            for part in parts:
                clients[name].sendall(part)
                if part.startswith((WHOLE, UNKNOWN)):
                    assert clients[name].recv(10_000).startswith(b"HTTP/1.1 ")

        def dropped() -> list[str]:
            return [name for name, connection in clients.items() if is_closed(connection, within_s=0.01)]

        assert dropped() == []
        assert answers(server, ["others are answered"])
        eventually(lambda: dropped() == list(STOPPED), "all are dropped")


@pytest.mark.parametrize("started", [HEAD + b"X: ", HEAD + b"Content-Length: 9999\r\n\r\n"], ids=["head", "body"])
def test_a_client_that_sends_byte_by_byte_is_dropped(server: Running, started: bytes) -> None:
    with socket.create_connection(server.address) as connection:
        connection.sendall(started)
        began = time.monotonic()
        while not is_closed(connection, within_s=0.05):
            assert time.monotonic() - began < PATIENCE_S + 30
            with suppress(OSError):
                connection.sendall(b"a")
        assert time.monotonic() - began > PATIENCE_S * 0.9


@LINUX
def test_a_client_that_does_not_read_its_answer_is_dropped(server: Running) -> None:
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(server.address)
        connection.sendall(asking([f"text {i}" for i in range(1_000)]))
        port = connection.getsockname()[1]

        def is_held() -> bool:
            return any(
                each.raddr and each.raddr.port == port for each in psutil.Process(server.process.pid).net_connections()
            )

        eventually(is_held, "the connection is accepted")
        eventually(lambda: server.metric("te_embed_count_total") >= 1_000, "the texts are computed")
        eventually(lambda: not is_held(), "the connection is dropped")


def test_work_that_nobody_waits_for_any_more_is_not_done(server: Running, fault: Path) -> None:
    before = server.metric("te_batch_embed_count_total")
    with ThreadPoolExecutor(1) as pool, held(fault):
        kept = pool.submit(answers, server, ["I keep the engine busy."])
        eventually(lambda: not fault.exists(), "the batch begins")
        with ExitStack() as stack:
            for number in range(5):
                connection = stack.enter_context(socket.create_connection(server.address))
                connection.sendall(asking([f"text {i} of {number}" for i in range(200)]))
            eventually(lambda: server.metric("te_queue_tokens") > 5_000, "the texts wait")
        eventually(lambda: server.metric("te_queue_tokens") == 0, "no text waits any more")
        assert not kept.done()  # they were forgotten, not computed
    assert kept.result()
    assert server.metric("te_batch_embed_count_total") - before == 1
    assert server.metric("http_server_active_requests") == 1  # the one for the metrics


@pytest.mark.fuzz
def test_ten_thousand_connections_leave_nothing_behind(server: Running) -> None:
    process = psutil.Process(server.process.pid)

    def open_and_close(count: int) -> None:
        with ExitStack() as stack:
            connections = [stack.enter_context(socket.create_connection(server.address)) for _ in range(count)]
            for _ in range(2):  # each is kept for a second request
                for connection in connections:
                    connection.sendall(WHOLE)
                for connection in connections:
                    received = connection.recv(1_000)
                    assert received.startswith(b"HTTP/1.1 200 OK")
                    while not received.endswith(b"}"):
                        received += connection.recv(1_000)

    for _ in range(20):
        open_and_close(50)  # few enough to be answered within PATIENCE_S on a busy machine
    eventually(lambda: process.num_fds() < 100, "the connections are closed")
    files, memory = process.num_fds(), process.memory_info().rss
    for _ in range(200):
        open_and_close(50)
    eventually(lambda: process.num_fds() <= files, "no file is left open")
    grown = process.memory_info().rss - memory
    print(f"{grown / 1e6:.1f} MB more after 10,000 connections")
    assert grown < 10_000_000


@LINUX
def test_a_server_without_files_left_answers_again_when_clients_leave(server: Running) -> None:
    process = psutil.Process(server.process.pid)
    before, at_most = process.num_fds(), process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (before + 10, at_most[1]))
    with ExitStack() as stack:
        connections = [stack.enter_context(socket.create_connection(server.address)) for _ in range(30)]
        for connection in connections:
            with suppress(ConnectionError):
                connection.sendall(WHOLE)

        def answered() -> int:
            for connection in connections:
                connection.setblocking(False)
                with suppress(OSError):
                    received[connection] += connection.recv(10_000)
            return sum(b"200 OK" in each for each in received.values())

        received = dict.fromkeys(connections, b"")
        eventually(lambda: answered() > 5, "those that have a file are answered")
        assert answered() < 20
    eventually(lambda: process.num_fds() <= before, "the connections are closed")
    assert answers(server, ["one"])
    process.rlimit(psutil.RLIMIT_NOFILE, at_most)
