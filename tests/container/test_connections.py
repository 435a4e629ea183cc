"""HTTP/1.1 as clients speak it, and clients that are slow, many or gone: others are answered as before."""

import json
import math
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import psutil
import pytest

import container.client
import container.front
from container import prediction_folders
from container.server import Server, free_port
from tests.support.fronts import HEAD, Fronted, fronted, whole
from tests.support.servers import eventually
from tests.support.sockets import CHUNKED, chunk, exchange, is_closed, read, statuses

SLEPT = {"slept": True}
PATIENCE_S = 1.5
HEALTH = b"GET /health-check HTTP/1.1\r\nHost: x\r\n\r\n"


def asking(text: str) -> bytes:
    return json.dumps({"input": {"text": text}}).encode()


@pytest.fixture
def patient(cog: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fronted]:
    """A front that waits PATIENCE_S for its clients."""
    for name in ("RECEIVE_TIMEOUT_S", "KEEP_ALIVE_S", "LINGER_S"):
        monkeypatch.setattr(container.client, name, PATIENCE_S)
    monkeypatch.setattr(container.front, "SWEEP_EVERY_S", 0.1)
    with fronted(cog) as running:
        yield running


WHOLE = whole(asking("sleep 0"))
PARTS = {
    "byte by byte": [bytes([byte]) for byte in WHOLE],
    "head and body": [WHOLE[:90], WHOLE[90:]],
    "chunks": [HEAD + CHUNKED + b"\r\n" + chunk(asking("sleep 0")[:9]), chunk(asking("sleep 0")[9:]) + chunk(b"")],
    "chunks at once": [HEAD + CHUNKED + b"\r\n" + chunk(asking("sleep 0")) + chunk(b"")],
    "an offer of HTTP/2": [WHOLE.replace(b"Host", b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHost")],
    "HTTP/1.0": [WHOLE.replace(b"HTTP/1.1", b"HTTP/1.0")],
    "two at once": [WHOLE + WHOLE],
    "one and a half at once": [WHOLE + WHOLE[:50], WHOLE[50:]],
}


@pytest.mark.parametrize("name", PARTS)
def test_a_request_is_read_in_whatever_parts_it_comes(front: Fronted, name: str) -> None:
    with socket.create_connection(front.address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in PARTS[name]:
            connection.sendall(part)
            time.sleep(0.05 if len(PARTS[name]) < 5 else 0)
        received = read(connection)
    expected = 2 if "half" in name or "two" in name else 1
    assert statuses(received) == [200] * expected and received.count(b'{"slept":true}') == expected


def test_a_hundred_requests_at_once_are_answered_in_their_order(front: Fronted) -> None:
    requests = [
        whole(json.dumps({"id": f"n{i}", "input": {"text": f"sleep {(i % 3) / 100}"}}).encode()) for i in range(100)
    ]
    received = b""
    with socket.create_connection(front.address, 60) as connection:
        connection.sendall(b"".join(requests))
        while received.count(b'{"slept":true}') < 100 and (part := connection.recv(1 << 20)):
            received += part
    ids = [json.loads(each.partition(b"\r\n\r\n")[2])["id"] for each in received.split(b"HTTP/1.1 200 OK\r\n")[1:]]
    assert ids == [f"n{i}" for i in range(100)]


def test_a_client_that_sends_too_many_requests_ahead_is_dropped(front: Fronted) -> None:
    received = exchange(front.address, whole(asking("sleep 0.5")) + HEALTH * 3_000)
    assert statuses(received) == [200] and b'{"slept":true}' in received
    offers = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    assert len(statuses(exchange(front.address, offers * 3_000))) <= container.client.MOST_AHEAD + 1


def test_refusals_keep_their_place_among_answers(front: Fronted) -> None:
    received = exchange(
        front.address, WHOLE + whole(b"[]") + HEALTH + whole(b"{}", b"PUT /shutdown HTTP/1.1\r\n") + WHOLE
    )
    assert statuses(received) == [200, 422, 200, 404, 200]


def test_a_body_is_sent_when_it_is_asked_for(front: Fronted) -> None:
    body = asking("sleep 0")
    with socket.create_connection(front.address) as connection:
        connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert statuses(read(connection)) == [200]
    refused = HEAD.replace(b"application/json", b"text/plain") + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n"
    assert statuses(exchange(front.address, refused)) == [415]


@pytest.mark.parametrize("path", ["/", "/health-check", "/openapi.json"])
def test_head_is_answered_without_a_body(front: Fronted, path: str) -> None:
    with httpx.Client(base_url=front.url) as client:
        head, whole_answer = client.head(path), client.get(path)
        assert head.status_code == whole_answer.status_code == 200 and head.content == b""
        assert client.head("/none").content == b"" and client.get("/").status_code == 200


STOPPED = {
    "nothing": b"",
    "half a head": HEAD,
    "half a body": HEAD + b"Content-Length: 100\r\n\r\n{",
    "half of the chunks": HEAD + CHUNKED + b"\r\n" + chunk(b"{"),
    "no second request": WHOLE,
    "a refused body": HEAD.replace(b"application/json", b"text/plain") + b"Content-Length: 900000\r\n\r\n{",
}


def test_clients_that_stop_sending_are_dropped(patient: Fronted) -> None:
    with ExitStack() as stack:
        clients = {name: stack.enter_context(socket.create_connection(patient.address)) for name in STOPPED}
        for name, part in STOPPED.items():
            clients[name].sendall(part)

        def dropped() -> list[str]:
            return [name for name, connection in clients.items() if is_closed(connection, within_s=0.01)]

        assert set(dropped()) <= {"a refused body"}
        assert patient.post({"input": {"text": "sleep 0"}}).json()["output"] == SLEPT
        eventually(lambda: dropped() == list(STOPPED), "all are dropped")


def test_a_client_that_waits_for_its_answer_is_not_dropped(patient: Fronted) -> None:
    assert patient.post({"input": {"text": f"sleep {2 * PATIENCE_S}"}}).json()["output"] == SLEPT


@pytest.mark.parametrize("at_once", [1, 100])
def test_a_client_that_does_not_read_is_dropped_and_little_is_held_for_it(patient: Fronted, at_once: int) -> None:
    """It asks for 13 KB again and again, until the kernel holds all that is not read."""
    process = psutil.Process()
    before = process.memory_info().rss
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connection.connect(patient.address)
        connection.setblocking(False)
        started = time.monotonic()
        try:
            while time.monotonic() - started < PATIENCE_S / 2:
                connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * at_once)
                time.sleep(0.0005 if at_once == 1 else 0)
        except (BlockingIOError, ConnectionError):
            time.sleep(PATIENCE_S / 2)
        assert process.memory_info().rss - before < 4 << 20
        eventually(lambda: not patient.front._clients, "the connection is dropped")


def test_what_nobody_waits_for_is_cancelled(front: Fronted) -> None:
    def ask_again() -> int:
        return front.post({"input": {"text": "sleep 0"}}, "/predictions/gone", "PUT").status_code

    with socket.create_connection(front.address) as connection:
        connection.sendall(whole(b'{"id": "gone", "input": {"text": "sleep 60"}}'))
        eventually((prediction_folders.FOLDER / "gone").is_dir, "it begins")
        assert ask_again() == 202
    eventually(lambda: ask_again() == 200, "it is over")


def test_a_full_house_drops_who_has_said_nothing_for_longest(cog: Server) -> None:
    with fronted(cog, connections=20) as front, ExitStack() as stack:
        waiting = stack.enter_context(socket.create_connection(front.address))
        waiting.sendall(whole(asking("sleep 2")))
        eventually(lambda: any(each.asked is not None for each in list(front.front._clients)), "it is asked")
        idle = [stack.enter_context(socket.create_connection(front.address)) for _ in range(60)]
        assert front.post({"input": {"text": "sleep 0"}}).json()["output"] == SLEPT
        assert sum(is_closed(each, within_s=0.01) for each in idle) >= 41
        assert statuses(read(waiting)) == [200]


def test_where_all_wait_for_answers_the_next_is_told_so(cog: Server) -> None:
    with fronted(cog, connections=3) as front, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(front.post, {"input": {"text": "sleep 2"}}) for _ in range(3)]
        eventually(lambda: sum(each.asked is not None for each in list(front.front._clients)) == 3, "all are asked")
        answer = front.post({"input": {"text": "sleep 0"}})
        assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
        assert answer.json()["status"] == "failed" and "MAX_CONNECTIONS" in answer.json()["error"]
        assert all(each.result().json()["output"] == SLEPT for each in asked)


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of open files of one process")
def test_a_front_without_files_left_answers_again_when_clients_leave(front: Fronted) -> None:
    process = psutil.Process()
    at_most = process.rlimit(psutil.RLIMIT_NOFILE)
    with ExitStack() as stack:
        process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds() + 40, at_most[1]))
        stack.callback(process.rlimit, psutil.RLIMIT_NOFILE, at_most)
        with suppress(OSError):  # this process has both ends of each
            for _ in range(100):
                stack.enter_context(socket.create_connection(front.address))
        assert len(front.front._clients) < 40
    eventually(lambda: not front.front._clients, "the connections are closed")
    assert front.post({"input": {"text": "sleep 0"}}).json()["output"] == SLEPT


def test_bodies_that_are_held_are_bounded_and_small_ones_pass(cog: Server) -> None:
    with fronted(cog, bodies_bytes=1 << 20) as front, ExitStack() as stack:
        holding = [stack.enter_context(socket.create_connection(front.address)) for _ in range(3)]
        for connection in holding:
            connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + b" " * 300_000)
        eventually(lambda: front.front.held_bytes == 900_000, "three bodies are held")
        refused = front.post({"input": {"text": "a" * 200_000}})
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert "COG_BODIES_MB" in refused.json()["error"]
        assert front.post({"input": {"text": "sleep 0"}}).json()["output"] == SLEPT
        for connection in holding:
            connection.close()
        eventually(lambda: front.front.held_bytes == 0, "nothing is held")
        assert front.post({"input": {"text": "sleep 0 " + "a" * 200_000}}).json()["output"] == SLEPT


LARGE = " " * 100_000


def slowest_small_s(front: Fronted, prefer: str) -> float:
    """Return how long the slowest of twenty small predictions took beside ten large ones, which take turns.

    Infinity where one found no slot: Cog frees a slot a moment after its answer, a long one on a busy machine.
    """
    text, slowest = "sleep 1.5" + (LARGE if prefer == "wait" else ""), 0.0
    with ThreadPoolExecutor(12) as pool:
        started = time.monotonic()
        large = [pool.submit(front.post, {"input": {"text": text}}, prefer=prefer) for _ in range(10)]
        time.sleep(0.5)
        for _ in range(20):
            asked = time.monotonic()
            small = front.post({"input": {"text": "sleep 0"}})
            if small.status_code == 409:
                return math.inf
            assert small.json()["output"] == SLEPT
            slowest = max(slowest, time.monotonic() - asked)
        statuses = {each.result().status_code for each in large}
        if 409 in statuses:
            return math.inf
        assert statuses == {200 if prefer == "wait" else 202}
        assert time.monotonic() - started > (4.5 if prefer == "wait" else 3)
        eventually(lambda: front.front._gate.places._value == 4, "all places are free")
    return slowest


@pytest.mark.parametrize("prefer", ["wait", "respond-async"])
def test_large_predictions_leave_slots_to_small_ones(cog: Server, prefer: str) -> None:
    """Of 8 slots large ones have 4, and so have those whose answers nobody waits for."""
    with fronted(cog, slots=8) as front:
        # Another program may keep one try waiting; where no slot is left, a small one waits a second in each.
        assert any(slowest_small_s(front, prefer) < 1 for _ in range(3))


def test_a_large_prediction_whose_client_left_has_its_place_until_it_is_over(cog: Server) -> None:
    with fronted(cog, slots=8) as front:
        for _ in range(20):
            with socket.create_connection(front.address) as connection:
                connection.sendall(whole(asking("sleep 0.3" + LARGE)))
        assert front.post({"input": {"text": "sleep 0" + LARGE}}).json()["output"] == SLEPT
        eventually(lambda: front.front._gate.places._value == 4, "all places are free")


def test_too_many_large_ones_are_told_to_come_again(cog: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.gate.MOST_WAITING", 1)
    with fronted(cog, slots=2) as front, ThreadPoolExecutor(6) as pool:
        large = [pool.submit(front.post, {"input": {"text": "sleep 2" + LARGE}}) for _ in range(6)]
        answers = [each.result() for each in large]
    assert sorted(each.status_code for each in answers) == [200, 200, 429, 429, 429, 429]
    refused = next(each for each in answers if each.status_code == 429)
    assert refused.headers["retry-after"] == "1" and refused.json()["error"].startswith(
        "busy: as many large predictions"
    )


def test_a_large_body_arrives_as_it_was_sent(front: Fronted) -> None:
    answer = front.post({"input": {"text": "sleep 0 " + "ä" * 10_000_000}})
    assert answer.json()["output"] == SLEPT and front.front.held_bytes == 0


def test_while_cogs_server_is_away_health_says_that_it_starts() -> None:
    with fronted(free_port()) as front:
        health = httpx.get(f"{front.url}/health-check")
        assert health.status_code == 200 and health.json() == {"status": "STARTING"}
        assert httpx.head(f"{front.url}/health-check").status_code == 200
        for body in ({"input": {"text": "a"}}, {"input": {"text": LARGE}}):
            answer = front.post(body)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
            assert answer.json() == {"error": "the server is starting; try again in a moment", "status": "failed"}


def test_a_draining_front_answers_what_it_has_and_takes_no_more(cog: Server) -> None:
    with fronted(cog) as front, ThreadPoolExecutor(1) as pool, socket.create_connection(front.address) as idle:
        asked = pool.submit(front.post, {"input": {"text": "sleep 2"}})
        eventually(lambda: front.front.is_busy, "it is asked")
        front.front.drain()
        assert is_closed(idle, within_s=5)
        with pytest.raises(httpx.ConnectError):
            front.post({"input": {"text": "sleep 0"}})
        assert asked.result().json()["output"] == SLEPT and asked.result().status_code == 200
        eventually(lambda: not front.front.is_busy, "all is answered")
