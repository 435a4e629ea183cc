"""Servers as processes of this machine: making them fail, waiting for them, and what is left of them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from container import probe
from container.prediction_folders import FOLDER

# With it a server does what the file says that the variable FAULT names.
STUB = {"COG_PREDICT_TYPE_STUB": "tests/support/faulty_predictor.py:Predictor"}
PATIENCE_S = 120.0


def order(fault: Path, what: str) -> None:
    """Let the next batch do `what`."""
    written = fault.with_suffix(".new")
    written.write_text(what, encoding="utf-8")
    written.rename(fault)


@contextmanager
def held(fault: Path) -> Iterator[None]:
    """Hold the next batch back for the length of a with block."""
    file = fault.with_suffix(".held")
    file.touch()
    order(fault, "hold")
    try:
        yield
    finally:
        file.unlink()


def eventually(holds: Callable[[], object], what: str) -> None:
    """Wait until something holds; fail after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.05)


def wait_until_ready(url: str) -> None:
    """Wait until a server takes predictions."""
    eventually(lambda: probe.status(url) in probe.SERVES, f"{url} is ready")


def wait_until_begun(*ids: str) -> None:
    """Wait until Cog's server has begun predictions: it makes a folder for each."""
    eventually(lambda: all((FOLDER / each).is_dir() for each in ids), f"{ids} have begun")


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it started, the youngest last."""
    process = psutil.Process(pid)
    return sorted([process, *process.children(recursive=True)], key=lambda each: each.create_time())


def worker_of(pid: int) -> psutil.Process:
    """Return the process in which Cog's server runs the predictor."""
    [worker] = [each for each in tree(pid) if "_run_worker" in " ".join(each.cmdline())]
    return worker


def is_gone(process: psutil.Process) -> bool:
    """Return whether a process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
