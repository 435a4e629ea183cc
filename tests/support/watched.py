"""A process whose memory is watched, that of the processes that it starts included."""

import json
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from container.make_openapi import ROOT

EVERY_S = 0.005


def kib(pid: int, name: str) -> int:
    """Return a figure of /proc/PID/status, 0 where the process has gone."""
    with suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    return 0


def children(pid: int) -> list[int]:
    with suppress(OSError):
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return []


class Watched:
    """`python -m MODULE ARGUMENTS`, which prints a line when it is ready and answers each line of JSON with another."""

    def __init__(self, module: str, *arguments: str) -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", module, *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout
        self.process.stdout.readline()  # it is ready
        self._before = kib(self.process.pid, "VmRSS")

    def ask(self, question: object) -> tuple[Any, int]:
        """Return the answer, and the most KiB that the process and its children had meanwhile.

        What the process had before the first question is not counted: what it has kept since then is.
        """
        process, peaks, done = self.process, [0], threading.Event()
        assert process.stdin and process.stdout
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # the highest is to be counted from here

        def watch() -> None:
            while not done.is_set():
                peaks[0] = max(peaks[0], sum(kib(child, "VmHWM") for child in children(process.pid)))
                time.sleep(EVERY_S)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
        finally:
            done.set()
            thread.join()
        return answer, kib(process.pid, "VmHWM") - self._before + peaks[0]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
