"""Processes that fetch a checkpoint, several at once or killed while they do.

    python -m tests.support.fetching_processes resolve WEIGHTS       # prints the checkpoint's directory and name
    python -m tests.support.fetching_processes kill WEIGHTS ROUNDS   # see `kill`

A hundred processes that import everything anew would take a minute, so `kill` forks itself, all modules imported.
"""

import logging
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import weights
from fetching import cache

# Audit events of everything that changes the disk, and of opening files, which also reads.
STEPS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.utime", "shutil.rmtree")


def fetch_in_fork(named: str, kill_at_step: int | None) -> int:
    """Fork a process that fetches, and kills itself before step `kill_at_step` on the disk. Returns its id."""
    process = os.fork()
    if process == 0:
        _fetch_and_exit(named, kill_at_step)
    return process


def _fetch_and_exit(named: str, kill_at_step: int | None) -> NoReturn:
    steps = 0

    def count(event: str, _: object) -> None:
        nonlocal steps
        if event in STEPS:
            steps += 1
            if steps == kill_at_step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    try:
        weights.resolve(named)
    except BaseException:
        logging.exception("not fetched")
        os._exit(1)
    os._exit(0)


def kill(named: str, rounds: int) -> None:
    """Kill fetching processes, half of them at random times and half before random steps on the disk.

    Whatever is then under the checkpoint's name must be whole, and a process that is not killed must recover.
    """
    random.seed(0)
    reference = weights.resolve(named)
    expected = {p.relative_to(reference.directory): p.read_bytes() for p in reference.directory.rglob("*.safetensors")}
    shutil.rmtree(reference.directory)
    steps = _steps(named)
    started = time.perf_counter()
    os.waitpid(fetch_in_fork(named, None), 0)
    duration_s = time.perf_counter() - started
    shutil.rmtree(reference.directory)
    killed = published = 0
    for i in range(rounds):
        process = fetch_in_fork(named, random.randrange(1, steps) if i % 2 else None)
        if i % 2 == 0:
            time.sleep(random.uniform(0, duration_s))
            os.kill(process, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
        if reference.directory.exists():
            published += 1
            for name, content in expected.items():
                assert (reference.directory / name).read_bytes() == content, f"round {i}: {name}"
            assert weights.resolve(named) == reference, f"round {i}"
            shutil.rmtree(reference.directory)
        if i % 5 == 4:  # not each time: the next process may have to resume what a killed process left
            assert weights.resolve(named) == reference, f"round {i}"
            left = {path.name for path in cache.folder().iterdir()} - {reference.directory.name}
            assert all(name.endswith(".lock") for name in left), left
            shutil.rmtree(reference.directory)
    sys.stdout.write(
        f"{rounds} rounds, {killed} killed, {published} of them after the rename, {steps} steps on the disk\n"
    )


def _steps(named: str) -> int:
    """Return the number of steps on the disk that a fetch takes, by bisecting the step at which it is killed."""
    low, high = 1, 1024
    while low < high:
        middle = (low + high) // 2
        process = fetch_in_fork(named, middle)
        if os.waitpid(process, 0)[1] == 0:
            high = middle
        else:
            low = middle + 1
        for path in cache.folder().iterdir():
            if path.is_dir():
                shutil.rmtree(path)
    return low


def main() -> None:
    if sys.argv[1] == "kill":
        kill(sys.argv[2], int(sys.argv[3]))
        return
    checkpoint = weights.resolve(sys.argv[2] if len(sys.argv) > 2 else None)
    sys.stdout.write(f"{Path(checkpoint.directory)}\n{checkpoint.name}\n")


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    main()
