"""That PyTorch computes in one thread at a time: what was computed before leaves no helper threads behind."""

import os
import subprocess
import sys

import pytest
import torch

from scripts.make_openapi import ROOT

# Counts the process's threads around a product that is large enough for all cores. One that this thread did not compute
# before gives it helpers, one for each further core.
COUNTED = """
import os, time, torch
def threads(): return len(os.listdir("/proc/self/task"))
def compute(): torch.randn(512, 512) @ torch.randn(512, 512)
{before}
time.sleep(1)  # in which helpers that are told to end do
before = threads()
compute()
print(threads() - before, torch.get_num_threads() - 1)
"""

pytestmark = pytest.mark.skipif(torch.get_num_threads() == 1, reason="with one core there are no helpers")


def new_helpers(before: str) -> tuple[int, int]:
    """Return how many helpers a first product starts after `before`, and how many a process without any would."""
    command = [sys.executable, "-c", COUNTED.format(before=before)]
    environment = os.environ | {"WEIGHTS": "small", "CACHE_MB": "0"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    found, of = map(int, run.stdout.split())
    return found, of


def test_what_is_computed_apart_leaves_no_helpers() -> None:
    found, of = new_helpers("from engine.threads import in_own_thread; in_own_thread(compute)")
    assert found == of > 0
    assert new_helpers("compute()")[0] == 0  # so that the counting is known to tell the two apart


def test_setup_leaves_no_helpers_to_any_thread_but_the_engine_s() -> None:
    found, of = new_helpers("import predict; predict.Predictor().setup()")
    assert found == of > 0
