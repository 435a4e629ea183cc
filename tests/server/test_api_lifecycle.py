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


def test_while_the_model_is_loaded_the_server_lives_and_is_not_ready(fault: Path) -> None:
    fault.write_text("wait", encoding="utf-8")
    with (
        running_apis({"FAULT": str(fault)}, FAULTY, until="/live") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        assert client.get("/live").json() == {"status": "starting"}
        assert client.get("/metrics").status_code == 200
        for path in ("/ready", "/health", "/v1/models", "/info", "/api/tags"):
            answer = client.get(path)
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1", path
        for path, body in BODIES.items():
            answer = client.post(path, json=body(TEXTS))
            assert answer.status_code == 503 and answer.headers["retry-after"] == "1", path
            assert message(path, answer) == "the model is being loaded; try again in a moment"
        fault.unlink()
        eventually(lambda: client.get("/ready").status_code == 200, "the model is loaded")
        assert client.post("/embed", json={"inputs": TEXTS}).status_code == 200


def test_an_engine_that_is_lost_is_reported_by_live(fault: Path) -> None:
    with (
        running_apis({"FAULT": str(fault)}, FAULTY, until="/v1/models") as server,
        httpx.Client(base_url=server.url) as client,
    ):
        order(fault, "die")
        for path in BODIES.keys() - {"/tokenize"}:
            answer = client.post(path, json=BODIES[path](TEXTS))
            assert answer.status_code == 503 and "start the server again" in message(path, answer)
        for path in ("/live", "/ready", "/health"):
            answer = client.get(path)
            assert answer.status_code == 503 and "start the server again" in answer.json()["error"]["message"]


def test_an_engine_that_fails_at_a_text_names_it(fault: Path) -> None:
    with running_apis({"FAULT": str(fault)}, FAULTY) as server, httpx.Client(base_url=server.url) as client:
        for number, (path, body) in enumerate(each for each in BODIES.items() if each[0] != "/tokenize"):
            order(fault, "raise")
            answer = client.post(path, json=body([f"text number {number}"]))
            assert answer.status_code == (424 if "error_type" in answer.text else 500)
            assert "the engine cannot compute this text: RuntimeError: injected" in message(path, answer)
            assert client.post(path, json=body([f"text number {number}"])).status_code == 200


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_a_port_that_cannot_be_had_ends_the_command_in_a_sentence(port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = port if port != "taken" else str(listener.getsockname()[1])
        command = [sys.executable, "-m", "scripts.api", "--weights", "small", "--port", number]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert re.fullmatch(rf"port {number} of 127\.0\.0\.1 cannot be listened on \(.*\); choose .*\n", ended.stderr)
