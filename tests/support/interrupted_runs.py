"""Runs of `scripts.embed_corpus`, each in a process of its own that can be killed; started by the tests.

    python -m tests.support.interrupted_runs kill SEED KILLS INPUT OUTPUT OPTIONS...
    python -m tests.support.interrupted_runs update BEFORE SEED KILLS INPUT OUTPUT OPTIONS...
    python -m tests.support.interrupted_runs peak INPUT OUTPUT OPTIONS...

`kill` does one run, whose output becomes OUTPUT.0, and in that run's time kills others at random moments and starts the
next, until so many have been killed and one has come to its end. An output that is there before goes out of the way, to
OUTPUT.1 and so on. It prints how many shards each killed run left, in JSON. `update` does the same with runs that find
BEFORE as their output, and checks after each kill that this is there whole, or the new one. `peak` prints the most
memory that a run took, in KiB.
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch

from corpus.shards import shards_path
from scripts import embed_corpus

# Imported here once: a child is forked without having computed anything, and so starts in no time.
assert pq and torch


def start(arguments: list[str]) -> int:
    """Fork a process that does one run and return its id."""
    process = os.fork()
    if process:
        return process
    log = os.open(os.devnull, os.O_WRONLY)
    os.dup2(log, 2)
    sys.argv[1:] = arguments
    code = 1
    try:
        embed_corpus.main()
        code = 0
    finally:
        os._exit(code)


def finish(process: int) -> None:
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0


def content(output: Path) -> dict[str, bytes]:
    """Return the bytes of a file, or of each file in a folder."""
    paths = sorted(output.rglob("*")) if output.is_dir() else [output]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths if path.is_file()}


def put(before: Path | None, output: Path) -> None:
    """Put the output in its place that a run is to update."""
    if before is not None:
        (shutil.copytree if before.is_dir() else shutil.copy)(before, output)


def kill(seed: int, kills: int, arguments: list[str], before: Path | None = None) -> None:
    generator = random.Random(seed)
    output = Path(arguments[1])
    left: list[int] = []
    put(before, output)
    started = time.monotonic()
    finish(start(arguments))
    seconds = min(time.monotonic() - started, 10)  # a slow first run must not make the others wait
    output.rename(output.with_name(f"{output.name}.0"))
    whole, after = 1, content(output.with_name(f"{output.name}.0"))
    put(before, output)
    while len(left) < kills:
        process = start(arguments)
        time.sleep(generator.uniform(0, 0.7 * seconds))
        os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if os.WIFSIGNALED(status):
            left.append(len(list(shards_path(output).glob("[0-9]" * 8))))
            assert before is None or content(output) in (content(before), after)
        else:
            output.rename(output.with_name(f"{output.name}.{whole}"))
            put(before, output)
            whole += 1
    finish(start(arguments))
    sys.stdout.write(json.dumps(left))


def peak(arguments: list[str]) -> None:
    sys.argv[1:] = arguments
    embed_corpus.main()
    # Not getrusage, whose maximum a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text().splitlines()
    sys.stdout.write(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
    elif sys.argv[1] == "update":
        kill(int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:], Path(sys.argv[2]))
    else:
        peak(sys.argv[2:])
