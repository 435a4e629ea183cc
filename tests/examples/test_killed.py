"""A program that is killed half-way leaves no process and no folder, whatever it had started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.conftest import ROOT

PATIENCE_S = 60
# Opens an example's database, says so, and waits to be killed.
WAITS = """
import sys, time
from examples.{name} import opened
with opened():
    print("open", flush=True)
    time.sleep(600)
"""


def eventually(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.05)


def working_in(folder: Path) -> list[str]:
    """Return the commands of all processes whose current folder is inside one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if Path(os.readlink(process / "cwd")).is_relative_to(folder):
                found.append((process / "cmdline").read_text())
        except OSError:  # it has ended
            continue
    return found


@pytest.mark.parametrize(
    ("name", "server", "number"),
    [
        ("pgvector_search", "postgres", signal.SIGKILL),
        ("chroma_search", "chroma", signal.SIGKILL),
        ("redis_search", "redis-server", signal.SIGKILL),
        ("redis_search", "redis-server", signal.SIGTERM),
        ("duckdb_search", "", signal.SIGKILL),
        ("pgvector_search", None, signal.SIGKILL),
    ],
    ids=["postgres", "chroma", "redis", "redis terminated", "a folder", "postgres while it starts"],
)
def test_nothing_is_left(name: str, server: str | None, number: signal.Signals, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)  # whoever runs PostgreSQL may pass
    command = [sys.executable, "-c", WAITS.format(name=name)]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    program = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    assert program.stdout
    with program.stdout as output:
        if server is None:
            eventually(lambda: list(tmp_path.iterdir()), "a folder is there")
        else:
            assert output.readline() == "open\n" and list(tmp_path.iterdir())
            assert any(server in command for command in working_in(tmp_path))
        program.send_signal(number)
        program.wait(PATIENCE_S)
    eventually(lambda: not list(tmp_path.iterdir()) and not working_in(tmp_path), "all is gone")
