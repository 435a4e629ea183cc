"""`python -m scripts.server`: whoever ends it ends all of it after the accepted requests; what is lost starts again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from container.make_openapi import ROOT
from container.server import free_port
from tests.support.fronts import TOY
from tests.support.servers import STUB, eventually, is_gone, order, tree, wait_until_begun, wait_until_ready, worker_of


@dataclass(frozen=True)
class Served:
    """A command that keeps a server running, the server's address, and the file that makes its next batch slow."""

    process: subprocess.Popen[bytes]
    url: str
    fault: Path

    def ask(self) -> str:
        answer = httpx.post(f"{self.url}/predictions", json={"input": {"text": "hello"}}, timeout=120)
        return str(answer.json()["status"])

    def ask_slowly(self, pool: ThreadPoolExecutor, seconds: float) -> Future[str]:
        """Ask what takes so long, and return once it is being computed."""
        order(self.fault, f"sleep {seconds}")
        asked = pool.submit(self.ask)
        eventually(lambda: not self.fault.exists(), "the batch begins")
        return asked


@contextmanager
def served(
    folder: Path, command: list[str], weights: str = "small", predictor: Mapping[str, str] = STUB
) -> Iterator[Served]:
    """Run a command with PORT and WEIGHTS set, and a log in the folder; in the end kill what is left of it."""
    port = free_port()
    fault = folder / "fault"
    environment = os.environ | predictor | {"FAULT": str(fault), "CACHE_MB": "0", "PORT": str(port), "WEIGHTS": weights}
    with (folder / "log").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Served(process, f"http://127.0.0.1:{port}", fault)
    finally:
        for each in reversed(tree(process.pid)) if process.poll() is None else []:
            each.kill()
        process.wait()


def to_the_command(served: Served) -> None:
    served.process.terminate()


def to_the_command_as_control_c(served: Served) -> None:
    served.process.send_signal(signal.SIGINT)


def to_every_process(served: Served) -> None:  # as systemd does
    for each in tree(served.process.pid):
        each.terminate()


MODULE = [sys.executable, "-m", "scripts.server"]


@pytest.mark.parametrize(
    ("command", "end", "status"),
    [
        pytest.param(MODULE, to_the_command, 0, id="SIGTERM"),
        pytest.param(MODULE, to_the_command_as_control_c, 0, id="SIGINT", marks=pytest.mark.fuzz),
        pytest.param(MODULE, to_every_process, 0, id="SIGTERM to all", marks=pytest.mark.fuzz),
        pytest.param(
            ["make", "serve", f"RUN={sys.executable}"],
            to_the_command,
            -signal.SIGTERM,
            id="SIGTERM to make",
            marks=pytest.mark.fuzz,
        ),
    ],
)
def test_a_signal_ends_the_whole_tree_after_the_accepted_requests(
    tmp_path: Path, command: list[str], end: Callable[[Served], None], status: int
) -> None:
    # make would otherwise set up another environment than the one that runs the tests
    (tmp_path / "ready").touch()
    command = [*command, f"READY={tmp_path / 'ready'}"] if command[0] == "make" else command
    with served(tmp_path, command) as running, ThreadPoolExecutor(1) as pool:
        wait_until_ready(running.url)
        processes = tree(running.process.pid)
        assert len(processes) >= 3
        accepted = running.ask_slowly(pool, seconds=3)
        end(running)
        assert accepted.result() == "succeeded"
        assert running.process.wait(60) == status
        eventually(lambda: all(map(is_gone, processes)), "no process is left")


def test_make_serve_listens_where_its_command_line_says_and_nowhere_else() -> None:
    def command(*arguments: str) -> str:
        environment = os.environ | {"HOST": "example.com"}  # as some systems set it
        run = ["make", "--dry-run", "serve", *arguments]
        return subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True).stdout

    assert "-m scripts.server --host 127.0.0.1\n" in command()
    assert "-m scripts.server --host 0.0.0.0\n" in command("HOST=0.0.0.0")


def test_a_second_signal_does_not_wait_for_requests(tmp_path: Path) -> None:
    with served(tmp_path, MODULE, predictor=TOY) as running, ThreadPoolExecutor(1) as pool:
        wait_until_ready(running.url)
        processes = tree(running.process.pid)
        body = {"id": f"second-{running.process.pid}", "input": {"text": "sleep 60"}}
        accepted = pool.submit(httpx.put, f"{running.url}/predictions/{body['id']}", json=body, timeout=120)
        wait_until_begun(str(body["id"]))
        for _ in range(2):
            running.process.terminate()
            time.sleep(0.2)
        assert running.process.wait(30) == 0
        lost = isinstance(accepted.exception(), httpx.TransportError)
        assert lost or accepted.result().json()["status"] == "failed"
        eventually(lambda: all(map(is_gone, processes)), "no process is left")


def test_a_killed_command_leaves_no_server_behind(tmp_path: Path) -> None:
    with served(tmp_path, MODULE, predictor=TOY) as running:
        wait_until_ready(running.url)
        processes = tree(running.process.pid)
        running.process.kill()
        eventually(lambda: all(map(is_gone, processes)), "no process is left")


@pytest.mark.fuzz
def test_a_server_whose_worker_dies_fails_what_it_had_at_once_and_is_back_within_seconds(tmp_path: Path) -> None:
    with served(tmp_path, MODULE) as running, ThreadPoolExecutor(8) as pool:
        wait_until_ready(running.url)
        worker = worker_of(running.process.pid)
        asked = [running.ask_slowly(pool, seconds=60), *(pool.submit(running.ask) for _ in range(7))]
        time.sleep(0.5)
        died = time.monotonic()
        worker.kill()
        outcomes = [each.exception() or each.result() for each in asked]
        assert all(outcome == "failed" or isinstance(outcome, httpx.TransportError) for outcome in outcomes)
        assert time.monotonic() - died < 30
        eventually(lambda: is_gone(worker), "the worker is gone")
        wait_until_ready(running.url)
        assert worker_of(running.process.pid).pid != worker.pid
        assert running.ask() == "succeeded"
        print(f"back {time.monotonic() - died:.1f} s after its worker died")
        assert "the server is lost; starting it again" in (tmp_path / "log").read_text(encoding="utf-8")


def test_weights_that_cannot_be_loaded_end_the_command(tmp_path: Path) -> None:
    with served(tmp_path, MODULE, weights=str(tmp_path / "nothing")) as running:
        assert running.process.wait(120) == 1
    assert "no such directory" in (tmp_path / "log").read_text(encoding="utf-8")
    commands = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]
