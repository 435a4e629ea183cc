"""Whether every first start is counted."""

import re
import subprocess
import sys

from weights import SMALL


def test_every_start_is_counted() -> None:
    """In a process of its own, as the starts are forks."""
    command = [sys.executable, "-m", "lab.benchmarks.first_starts", str(SMALL), "--starts", "2", "--busy", "1"]
    printed = subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)
    rows = re.findall(r"^\| (?:float32|bfloat16) \| (\d) \| (?:\d+\.\d\d to \d+\.\d\d|not timed) \|$", printed, re.M)
    assert sum(map(int, rows)) == 2 and "CPU seconds of the choice: " in printed
