"""PyTorch computes in one thread at a time: what was computed before leaves no helper threads behind."""

import os
import subprocess
import sys

import pytest
import torch

from scripts.make_openapi import ROOT

# Counts the process's threads around a product that is large enough for all cores. A thread's first such product gives
# it helper threads, one for each further core.
COUNTED = """
import os, time, torch
def threads(): return len(os.listdir("/proc/self/task"))
def compute(): torch.randn(512, 512) @ torch.randn(512, 512)
{before}
time.sleep(1)  # helpers that are told to end need a moment
before = threads()
compute()
print(threads() - before, torch.get_num_threads() - 1)
"""

pytestmark = pytest.mark.skipif(torch.get_num_threads() == 1, reason="with one core there are no helpers")


def new_helpers(before: str) -> tuple[int, int]:
    """Return how many helpers the first product after `before` starts, and how many it starts in a fresh process."""
    command = [sys.executable, "-c", COUNTED.format(before=before)]
    environment = os.environ | {"WEIGHTS": "small", "CACHE_MB": "0"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True)
    started, possible = map(int, run.stdout.split())
    return started, possible


def test_work_in_its_own_thread_leaves_no_helpers() -> None:
    started, possible = new_helpers("from engine.threads import in_own_thread; in_own_thread(compute)")
    assert started == possible > 0
    assert new_helpers("compute()")[0] == 0  # shows that the count differs where helpers are left


def test_setup_leaves_helpers_to_no_thread_but_the_engine_s() -> None:
    started, possible = new_helpers("import predict; predict.Predictor().setup()")
    assert started == possible > 0
