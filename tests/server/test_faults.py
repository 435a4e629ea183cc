"""What one request, or the engine, does wrong must not reach the others, or the server says that it is ill."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import encoding
from prediction_folders import FOLDER, PredictionFolders
from scripts import probe
from scripts.make_openapi import ROOT
from scripts.server import Server, running_server
from tests.support.servers import STUB, eventually, is_gone, order, tree


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    return tmp_path / "fault"


@pytest.fixture
def faulty(fault: Path) -> Iterator[Server]:
    with running_server("small", settings=STUB | {"FAULT": str(fault), "CACHE_MB": "0"}) as running:
        yield running


def ask(server: Server, **inputs: Any) -> np.ndarray:
    answer = server.predict(inputs)
    assert answer["status"] == "succeeded", answer
    return encoding.decode(answer["output"])


def assert_answers_rightly(server: Server) -> None:
    texts = [f"Sentence {i} of those that follow a fault." for i in range(20)]
    with ThreadPoolExecutor(20) as pool:
        alone = list(pool.map(lambda text: ask(server, text=text), texts))
    np.testing.assert_allclose(alone, ask(server, texts=texts), atol=1e-6)
    assert httpx.get(f"{server.url}/health-check").json()["status"] == "READY"


def latencies_ms(server: Server, seconds: float, clients: int = 8) -> list[float]:
    """Return the sorted latencies of short texts, each of which must be answered."""
    end = time.monotonic() + seconds
    found: list[float] = []

    def client(number: int) -> None:
        with httpx.Client(timeout=60) as session:
            for i in range(100_000):
                if time.monotonic() > end:
                    return
                started = time.perf_counter()
                inputs = {"text": f"client {number} asks for the {i}th time"}
                answer = session.post(f"{server.url}/predictions", json={"input": inputs})
                assert answer.json()["status"] == "succeeded"
                found.append((time.perf_counter() - started) * 1000)

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return sorted(found)


def test_hundreds_of_clients_that_vanish_harm_nobody(server: Server) -> None:
    body = b'{"input": {"text": "nobody waits for this answer"}}'
    head = f"POST /predictions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    address = httpx.URL(server.url)
    for i in range(300):
        with socket.create_connection((address.host, address.port or 80)) as connection:
            connection.sendall(
                f"{head}\r\n\r\n".encode() + body[: len(body) if i % 3 else 20]
            )  # some in the middle of the body
    assert_answers_rightly(server)


def test_what_the_server_leaves_of_predictions_can_be_found_and_removed(server: Server) -> None:
    before = set(FOLDER.iterdir()) if FOLDER.exists() else set()
    for _ in range(3):
        ask(server, text="A folder will be left of me.")
    left = set(FOLDER.iterdir()) - before
    assert len(left) >= 3
    PredictionFolders().sweep(time.time() + 3_600)
    assert not any(one.exists() for one in left)


def test_queued_and_running_predictions_are_cancelled(faulty: Server, fault: Path) -> None:
    order(fault, "sleep 4")
    with ThreadPoolExecutor(12) as pool:

        def put(name: str) -> dict[str, Any]:
            inputs = {"texts": [f"{name} {i}" for i in range(100)]}
            answer = httpx.put(f"{faulty.url}/predictions/{name}", json={"id": name, "input": inputs}, timeout=60)
            return dict(answer.json())

        running: Future[dict[str, Any]] = pool.submit(put, "running")
        time.sleep(0.3)
        queued = [pool.submit(put, f"queued-{i}") for i in range(8)]
        kept = pool.submit(ask, faulty, text="I am still waiting.")
        time.sleep(0.3)
        for name in ["running", *(f"queued-{i}" for i in range(8))]:
            assert httpx.post(f"{faulty.url}/predictions/{name}/cancel").status_code == 200
        assert {task.result()["status"] for task in [running, *queued]} == {"canceled"}
        assert not kept.done()  # nor is the batch that sleeps
        assert kept.result().shape == (768,)
    assert_answers_rightly(faulty)


def test_an_engine_that_raises_once_fails_nobody(faulty: Server, fault: Path) -> None:
    order(fault, "raise")
    assert ask(faulty, texts=["one", "two", "three"]).shape == (3, 768)
    order(fault, "raise")
    failed = faulty.predict({"text": "alone"})
    assert failed["status"] == "failed"
    assert failed["error"].endswith("text: the engine cannot compute this text: RuntimeError: injected")
    assert_answers_rightly(faulty)


def test_a_dead_engine_thread_is_reported(faulty: Server, fault: Path) -> None:
    assert httpx.get(f"{faulty.url}/health-check").json()["status"] == "READY"
    order(fault, "die")
    for _ in range(2):
        answer = faulty.predict({"text": "anybody there?"}, timeout_s=20)
        assert answer["status"] == "failed" and "start the server again" in answer["error"]
    eventually(lambda: probe.status(faulty.url) == "UNHEALTHY", "the dead engine is noticed")
    # What Docker's health check runs ends a server whose worker still lives, and that worker.
    processes = tree(faulty.process.pid)
    command = [sys.executable, "scripts/probe.py", "--url", faulty.url, "--end", str(faulty.process.pid)]
    assert subprocess.run(command, cwd=ROOT, timeout=60).returncode == 1
    faulty.process.wait(30)
    eventually(lambda: all(map(is_gone, processes)), "no process is left")


def test_overload_is_said_at_once_and_passes(fault: Path) -> None:
    settings = STUB | {"FAULT": str(fault), "MAX_WAITING_TOKENS": "1000"}
    with running_server("small", settings=settings) as server, ThreadPoolExecutor(41) as pool:
        order(fault, "sleep 5")
        first = pool.submit(ask, server, text="This one keeps the engine busy.")
        time.sleep(0.3)
        many = [[f"text {i} of request {number}" for i in range(10)] for number in range(40)]
        answers = list(pool.map(lambda texts: server.predict({"texts": texts}), many))
        refused = [answer for answer in answers if answer["status"] == "failed"]
        assert 0 < len(refused) < 40
        assert all("tokens are waiting" in one["error"] and "try again" in one["error"] for one in refused)
        assert max(one["metrics"]["predict_time"] for one in refused) < 4  # while the engine was still busy
        first.result()
        assert_answers_rightly(server)


def test_a_term_signal_lets_accepted_work_finish(fault: Path) -> None:
    settings = STUB | {"FAULT": str(fault), "CACHE_MB": "0"}
    with running_server("small", settings=settings) as server, ThreadPoolExecutor(32) as pool:
        order(fault, "sleep 4")
        work = [pool.submit(ask, server, text=f"finish what you began, {i}") for i in range(32)]
        time.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 0
        assert all(one.result().shape == (768,) for one in work)


async def singles_beside(server: Server, other: dict[str, Any], times: int) -> tuple[list[float], list[float]]:
    """Return the latencies of single texts without and with `other` requests beside them."""
    alone = await asyncio.to_thread(latencies_ms, server, 2)
    stop = threading.Event()

    def disturb() -> None:
        for _ in range(times):
            if not stop.wait(0.5):
                assert server.predict(other)["status"] == "succeeded"

    disturbing = asyncio.create_task(asyncio.to_thread(disturb))
    beside = await asyncio.to_thread(latencies_ms, server, 4)
    stop.set()
    await disturbing
    return alone, beside


@pytest.mark.parametrize(
    ("other", "times"),
    [({"text": "word " * 10_000_000}, 1), ({"texts": [f"text number {i} of many" for i in range(2_048)]}, 3)],
    ids=["fifty million characters", "2,048 texts"],
)
def test_a_huge_request_holds_up_no_single_one(server: Server, other: dict[str, Any], times: int) -> None:
    """Figures for a quiet machine are benchmarks/load.py's; here only that nobody waits for the whole of it."""
    alone, beside = asyncio.run(singles_beside(server, other, times))
    p99 = [np.percentile(one, 99) for one in (alone, beside)]
    p50 = [np.percentile(one, 50) for one in (alone, beside)]
    print(f"single texts: p50 {p50[0]:.0f} -> {p50[1]:.0f} ms, p99 {p99[0]:.0f} -> {p99[1]:.0f} ms")
    assert p50[1] < 20 * p50[0]
    assert_answers_rightly(server)
