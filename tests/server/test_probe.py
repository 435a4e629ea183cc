"""container/probe.py, by which Docker and Kubernetes tell a server's state, against the server in each of them."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from container import server as servers
from container.make_openapi import ROOT
from container.probe import end
from container.server import Server, running_server
from tests.support.fronts import TOY
from tests.support.servers import eventually, is_gone, order, tree, wait_until_begun, wait_until_ready, worker_of


def probe(url: str, *options: str) -> tuple[int, str]:
    """Return the probe's exit status and what it printed; only Python's own modules are at hand, as in any image."""
    command = [sys.executable, "-I", "-S", str(ROOT / "container" / "probe.py"), "--url", url, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stderr == ""
    return result.returncode, result.stdout.strip()


def health(url: str) -> str:
    answer = httpx.get(f"{url}/health-check", timeout=10)
    assert answer.status_code == 200, "whatever the status"
    return str(answer.json()["status"])


def test_a_server_that_takes_predictions_is_ready_and_live(server: Server) -> None:
    assert probe(server.url) == probe(server.url, "--live") == (0, "READY")
    assert probe(server.url, "--end", str(server.process.pid)) == (0, "READY")
    assert server.predict({"text": "still here"})["status"] == "succeeded"


@pytest.mark.parametrize("stdout", [">&-", ">/dev/full"], ids=["closed", "full"])
def test_the_exit_status_does_not_depend_on_a_reader(server: Server, stdout: str) -> None:
    command = ["bash", "-c", f'"$0" container/probe.py --url {server.url} {stdout}', sys.executable]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_server_that_sets_up_is_live_and_not_ready(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    order(fault, "wait")
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    process = servers.start(port, None, tmp_path / "log", settings=TOY | {"FAULT": str(fault)})
    try:
        eventually(lambda: probe(url)[1] != "NO ANSWER", "the server listens")
        assert probe(url) == (1, "STARTING")
        assert probe(url, "--end", str(process.pid)) == (1, "STARTING")
        assert probe(url, "--live") == (0, "STARTING")
        fault.unlink()
        wait_until_ready(url)
    finally:
        servers.stop(process)


def test_a_failed_setup_must_be_started_again(tmp_path: Path) -> None:
    fault = tmp_path / "fault"
    order(fault, "raise")
    port = servers.free_port()
    url = f"http://127.0.0.1:{port}"
    process = servers.start(port, None, tmp_path / "log", settings=TOY | {"FAULT": str(fault)})
    try:
        eventually(lambda: probe(url)[1] == "SETUP_FAILED", "the setup fails")
        assert probe(url, "--live") == (1, "SETUP_FAILED")
        probe(url, "--end", str(process.pid))
        process.wait(30)
    finally:
        servers.stop(process)


def test_a_server_without_its_worker_must_be_started_again_and_the_probe_ends_it() -> None:
    with running_server(None, settings=TOY, front=False) as lost:
        worker_of(lost.process.pid).kill()
        eventually(lambda: health(lost.url) == "UNHEALTHY", "the dead worker is noticed")
        assert probe(lost.url) == probe(lost.url, "--live") == (1, "UNHEALTHY")
        with httpx.Client(timeout=30) as client:
            answers = [client.post(f"{lost.url}/predictions", json={"input": {"text": "a"}}) for _ in range(300)]
        assert answers[-1].status_code == 409, "Cog's server does not recover by itself"
        assert health(lost.url) == "UNHEALTHY"
        status, _ = probe(lost.url, "--end", str(lost.process.pid))
        assert status == 1
        assert lost.process.wait(30) == 0
        assert probe(lost.url) == (1, "NO ANSWER")


def test_the_probe_leaves_a_server_that_finishes_its_last_requests() -> None:
    with running_server(None, settings=TOY, front=False) as server, ThreadPoolExecutor(1) as pool:
        body = {"id": f"last-{server.process.pid}", "input": {"text": "sleep 5"}}
        accepted = pool.submit(httpx.put, f"{server.url}/predictions/{body['id']}", json=body, timeout=60)
        wait_until_begun(str(body["id"]))
        server.process.terminate()
        eventually(lambda: probe(server.url)[1] == "NO ANSWER", "the server no longer listens")
        assert probe(server.url, "--end", str(server.process.pid)) == (1, "NO ANSWER")
        assert accepted.result().json()["status"] == "succeeded"


def test_a_proxy_is_not_asked(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert probe(server.url) == (0, "READY")


def test_ending_a_server_does_not_wait_for_a_worker_that_hangs() -> None:
    with running_server(None, settings=TOY, front=False) as server, ThreadPoolExecutor(1) as pool:
        processes = tree(server.process.pid)
        worker_of(server.process.pid).suspend()
        asked = pool.submit(server.predict, {"text": "sleep 0"}, timeout_s=60)
        time.sleep(0.5)
        end(server.process.pid)
        assert server.process.wait(20) == 0
        assert asked.exception() or asked.result()["error"] == "Worker crashed"
        eventually(lambda: all(map(is_gone, processes)), "no process is left")
