"""The other APIs from the start of loading to the last answer: with Cog's server and without it."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

from container.make_openapi import ROOT
from container.server import free_port, running_server
from tests.support.apis import BODIES, FAULTY, Running, message, running_apis
from tests.support.servers import STUB, eventually, held, is_gone, order, tree

TEXTS = [f"text number {i}" for i in range(20)]  # finished in another thread than the loop's


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    return tmp_path / "fault"


@contextmanager
def running_beside_cog(fault: Path) -> Iterator[Running]:
    port = free_port()
    with running_server("small", settings=STUB | {"FAULT": str(fault), "API_PORT": str(port)}) as server:
        yield Running(f"http://127.0.0.1:{port}", server.process, server.log)


@contextmanager
def running_alone(fault: Path) -> Iterator[Running]:
    with running_apis({"FAULT": str(fault)}, FAULTY) as server:
        yield server


def is_refused(server: Running) -> bool:
    try:
        with socket.create_connection(server.address):
            return False
    except ConnectionRefusedError:
        return True


@pytest.mark.parametrize("running", [running_alone, running_beside_cog], ids=["alone", "beside Cog's server"])
def test_a_signal_ends_the_server_after_the_requests_under_way(
    fault: Path, running: Callable[[Path], AbstractContextManager[Running]]
) -> None:
    with running(fault) as server, ThreadPoolExecutor(1) as pool, socket.create_connection(server.address):
        processes = tree(server.process.pid)
        with held(fault):
            asked = pool.submit(httpx.post, f"{server.url}/embed", json={"inputs": TEXTS}, timeout=60)
            eventually(lambda: not fault.exists(), "the batch begins")
            server.process.terminate()
            eventually(lambda: is_refused(server), "new connections are refused")
            assert not asked.done()
        assert asked.result().status_code == 200 and len(asked.result().json()) == len(TEXTS)
        assert server.process.wait(20) == 0
        eventually(lambda: all(map(is_gone, processes)), "no process is left")


def test_a_signal_ends_a_server_that_still_loads(fault: Path) -> None:
    fault.write_text("wait", encoding="utf-8")
    with running_apis({"FAULT": str(fault)}, FAULTY, until="/live") as server:
        server.process.terminate()
        assert server.process.wait(20) == 0


@pytest.fixture(scope="module")
def shared_fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "fault"


@pytest.fixture(scope="module")
def loading(shared_fault: Path) -> Iterator[Running]:
    """A server that loads until `ready` lets it go on, and whose engine the last of its tests ends."""
    shared_fault.write_text("wait", encoding="utf-8")
    with running_apis({"FAULT": str(shared_fault), "MAX_WAITING_TOKENS": "360"}, FAULTY, until="/live") as server:
        yield server


@pytest.fixture(scope="module")
def ready(loading: Running, shared_fault: Path) -> Iterator[httpx.Client]:
    """A client of that server, which has loaded now."""
    shared_fault.unlink()
    with httpx.Client(base_url=loading.url, timeout=60) as client:
        eventually(lambda: client.get("/ready").status_code == 200, "the model is loaded")
        yield client


def test_while_the_model_is_loaded_the_server_lives_and_is_not_ready(loading: Running) -> None:
    with httpx.Client(base_url=loading.url) as client:
        assert client.get("/live").json() == {"status": "starting"}
        assert client.get("/metrics").status_code == 200
        for path in ("/ready", "/health", "/v1/models", "/info", "/api/tags"):
            answer = client.get(path)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1", path
        for path, body in BODIES.items():
            answer = client.post(path, json=body(TEXTS))
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1", path
            assert message(path, answer) == "the model is being loaded; try again in a moment"


def test_what_is_embedded_once_the_model_is_loaded(ready: httpx.Client) -> None:
    assert ready.post("/embed", json={"inputs": TEXTS}).status_code == 200


def test_an_engine_that_fails_at_a_text_names_it(ready: httpx.Client, shared_fault: Path) -> None:
    for number, (path, body) in enumerate(each for each in BODIES.items() if each[0] != "/tokenize"):
        order(shared_fault, "raise")
        answer = ready.post(path, json=body([f"text of number {number}"]))
        assert answer.status_code == (424 if "error_type" in answer.text else 500)
        assert "the engine cannot compute this text: RuntimeError: injected" in message(path, answer)
        assert ready.post(path, json=body([f"text of number {number}"])).status_code == 200


def test_what_is_too_much_is_refused_at_once_and_the_client_told_when_to_come_back(
    ready: httpx.Client, loading: Running, shared_fault: Path
) -> None:
    with ThreadPoolExecutor(5) as pool:
        with held(shared_fault):
            asked = [pool.submit(ready.post, "/embed", json={"inputs": "I keep the engine busy."})]
            eventually(lambda: not shared_fault.exists(), "the batch begins")
            for request in range(4):
                texts = [f"text {i} of request {request}, which fills the queue" for i in range(4)]
                asked.append(pool.submit(ready.post, "/embed", json={"inputs": texts}))
            eventually(lambda: loading.metric("te_queue_tokens") > 330, "the queue is full")
            for path in BODIES.keys() - {"/tokenize"}:
                answer = ready.post(path, json=BODIES[path](["one", "too", "many"]))
                assert answer.status_code == 429 and answer.headers["retry-after"] == "1", answer.text
                assert message(path, answer).startswith("busy: ") and "try again" in message(path, answer)
            assert not asked[0].done()
        assert [each.result().status_code for each in asked] == [200] * 5
        assert ready.post("/embed", json={"inputs": ["one", "too", "many"]}).status_code == 200


def test_an_engine_that_is_lost_is_reported_by_live(ready: httpx.Client, shared_fault: Path) -> None:
    order(shared_fault, "die")
    for path in BODIES.keys() - {"/tokenize"}:
        answer = ready.post(path, json=BODIES[path](["never computed before"]))
        assert answer.status_code == 503 and "start the server again" in message(path, answer)
    for path in ("/live", "/ready", "/health"):  # which look at the engine every few seconds
        eventually(lambda path=path: ready.get(path).status_code == 503, "the lost engine is noticed")  # type: ignore[misc]
        answer = ready.get(path)
        assert answer.status_code == 503 and "start the server again" in answer.json()["error"]["message"]


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_a_port_that_cannot_be_had_ends_the_command_in_a_sentence(port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = port if port != "taken" else str(listener.getsockname()[1])
        command = [sys.executable, "-m", "scripts.api", "--weights", "small", "--port", number]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert re.fullmatch(rf"port {number} of 127\.0\.0\.1 cannot be listened on \(.*\); choose .*\n", ended.stderr)
