"""How many threads compute, and which: PyTorch takes twice as long once two threads of a process have computed."""

import contextvars
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

CGROUP = Path("/sys/fs/cgroup")

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result]) -> Result:
    """Return work(), computed in a thread that has ended when this returns. Raises what `work` raises.

    Use it for all that is computed before the serving thread starts. A thread that computes keeps OpenMP helper threads
    as long as it lives. Where all helpers together outnumber the cores, the runtime (libgomp,
    `gomp_throttled_spin_count_var`) puts them to sleep between operations, which doubles the time.
    """
    with ThreadPoolExecutor(1, "in-own-thread") as executor:
        return executor.submit(contextvars.copy_context().run, work).result()


def limit_threads() -> None:
    """Let PyTorch use no more threads than `usable_threads`."""
    import torch

    torch.set_num_threads(usable_threads())


def usable_threads() -> int:
    """Return the threads that compute at once: torch's own number, unless the container may use fewer cores.

    Torch counts the cores that the process may run on, or takes OMP_NUM_THREADS. It does not see a limit of their time
    (docker run --cpus 1.5): beyond it the kernel stops all threads for a while. Part of a core is left to the server.
    """
    import torch

    threads = torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return threads if asked.isdigit() else max(1, int(min(threads, _cores_of_cgroup())))


def _cores_of_cgroup() -> float:
    """Return how many cores' time the container may use, by the files of cgroup version 2 or 1; inf without a limit."""
    for files in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):
        with suppress(OSError, ValueError):
            quota, period = " ".join((CGROUP / file).read_text(encoding="ascii") for file in files).split()
            return float(quota) / float(period) if quota not in ("max", "-1") else math.inf
    return math.inf
