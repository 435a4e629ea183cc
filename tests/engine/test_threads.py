"""PyTorch computes in one thread at a time: what was computed before leaves no helper threads behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from container.make_openapi import ROOT
from engine.threads import usable_threads

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
after = threads()
compute()
print(after - before, torch.get_num_threads() - 1, threads() - after)
"""

helpers = pytest.mark.skipif(torch.get_num_threads() == 1, reason="with one core there are no helpers")


def new_helpers(before: str) -> tuple[int, int]:
    """Return how many helpers the first product after `before` starts, and how many it starts in a fresh process.

    The second product starts none, which shows that the count differs where helpers are left.
    """
    command = [sys.executable, "-c", COUNTED.format(before=before)]
    environment = os.environ | {"WEIGHTS": "small", "CACHE_MB": "0"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=True)
    started, possible, more = map(int, run.stdout.split())
    assert more == 0
    return started, possible


@helpers
def test_work_in_its_own_thread_leaves_no_helpers() -> None:
    started, possible = new_helpers("from engine.threads import in_own_thread; in_own_thread(compute)")
    assert started == possible > 0


@helpers
def test_setup_leaves_helpers_to_no_thread_but_the_engine_s() -> None:
    started, possible = new_helpers("import predict; predict.Predictor().setup()")
    assert started == possible > 0


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "390000 100000\n"}, 3),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu.max": "what is this"}, 64),
        ({}, 64),
    ],
)
def test_a_limit_of_the_container_counts(
    files: dict[str, str], threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.threads.CGROUP", tmp_path)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    for nonsense in ("", " ", "many"):  # which OpenMP ignores, too
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert usable_threads() == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "64")  # whoever sets it knows better
    assert usable_threads() == 64


def test_an_engine_computes_with_no_more_threads_than_it_may(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000")
    code = f"""
import engine.threads, torch
from pathlib import Path
engine.threads.CGROUP = Path({str(tmp_path)!r})
import weights
loaded = engine.load(weights.SMALL)
print(torch.get_num_threads(), len(loaded.embed([[2, 5, 1]])))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True)
    assert printed.split() == ["1", "1"]
