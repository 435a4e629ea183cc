"""The server that is attacked, what it is like when nobody attacks it, and the table at the end."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from container.server import Server, free_port, running_server
from lab.report import table
from tests.support.apis import metric
from tests.support.servers import eventually, tree

SECONDS = float(os.environ.get("ABUSE_SECONDS") or 2)
# Pools of threads grow to 40 when they are first used; connections that nobody uses any more are kept for a minute.
SPARE = {"processes": 1, "threads": 40, "files": 100, "temporary files": 3}
COLUMNS = ("attack", "calls answered", "single texts, p50 and p99 in ms", "/live, slowest", "memory, MB more", "holds")
rows: list[list[str]] = []


@dataclass
class Measured:
    """What single texts and /live took in milliseconds, and the failures of both."""

    ms: dict[str, list[float]]
    failures: list[str]

    def p99(self, name: str) -> float:
        """Return what 99 of 100 answers took at most."""
        return float(np.percentile(self.ms[name], 99))

    def p50(self, name: str) -> float:
        """Return what half of the answers took at most."""
        return float(np.percentile(self.ms[name], 50))


@dataclass
class Target:
    """A server under attack, and what it is like without one."""

    server: Server
    apis: str
    temporary: Path
    """The folder for its temporary files, of its own."""
    alone: Measured = field(init=False)
    before: dict[str, int] = field(init=False)
    """What the server held before the first attack."""

    @property
    def urls(self) -> dict[str, str]:
        """The URLs of both ports."""
        return {"cog": self.server.url, "apis": self.apis}

    def processes(self) -> list[psutil.Process]:
        """Return the server's processes."""
        return tree(self.server.process.pid)

    def memory_bytes(self) -> int:
        """Return the memory that the server's processes hold."""
        total = 0
        for process in self.processes():
            with suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def held(self) -> dict[str, int]:
        """Return what must be as before when an attack is over."""
        processes = self.processes()
        return {
            "processes": len(processes),
            "threads": sum(process.num_threads() for process in processes),
            "files": sum(process.num_fds() for process in processes),
            "temporary files": len(list(self.temporary.iterdir())),
        }

    def waiting(self) -> float:
        """Return the tokens that wait."""
        return metric(self.apis, "te_queue_tokens")

    def measure(self, seconds: float) -> Measured:
        """Ask for single texts and for /live, in another process."""
        command = [sys.executable, "-m", "tests.abuse.singles", "--seconds", str(seconds), *self.urls.values()]
        said: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        failures = [f"{name}: {failure}" for name, result in said.items() for failure in result["failures"]]
        return Measured({name: result["ms"] for name, result in said.items()}, failures)


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    port, temporary = free_port(), tmp_path_factory.mktemp("temporary")
    with running_server("small", settings={"API_PORT": str(port), "TMPDIR": str(temporary)}) as server:
        target = Target(server, f"http://127.0.0.1:{port}", temporary)
        target.measure(1)  # what is done once has been done
        target.alone = target.measure(max(SECONDS, 3))
        target.before = target.held()
        rows.append(["nobody attacks", "", *told(target.alone), "", ""])
        yield target


@dataclass
class Watch:
    """The most memory that the server held during a with block."""

    target: Target
    most_bytes: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.05):
            self.most_bytes = max(self.most_bytes, self.target.memory_bytes())


def told(measured: Measured) -> list[str]:
    """Return the table's cells for what was measured."""
    singles = ", ".join(f"{name} {measured.p50(name):.0f} and {measured.p99(name):.0f}" for name in ("cog", "openai"))
    return [singles, f"{max(measured.ms['live']):.0f}"]


def settled(target: Target) -> dict[str, tuple[int, int]]:
    """Wait until nothing waits; return what is more than before all attacks even a while later, with both numbers."""
    before = target.before
    eventually(lambda: target.waiting() == 0, "the queue is empty")
    deadline = time.monotonic() + 20
    while True:
        more = {name: (before[name], now) for name, now in target.held().items() if now > before[name] + SPARE[name]}
        if not more or time.monotonic() > deadline:
            return more
        time.sleep(0.2)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of all attacks."""
    if rows:
        terminalreporter.write_line("\n" + table(COLUMNS, rows))
