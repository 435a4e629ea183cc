"""PyTorch computes at half its speed on a CPU once two threads of a process have computed."""

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result]) -> Result:
    """Return work(), computed in a thread that has ended when this returns. Raises what `work` raises.

    For everything that is computed before the serving thread starts. A thread that computes keeps OpenMP helper threads
    for as long as it lives. Where all helpers together outnumber the cores, the runtime (libgomp,
    `gomp_throttled_spin_count_var`) puts them to sleep between operations, which doubles the time.
    """
    with ThreadPoolExecutor(1, "in-own-thread") as executor:
        return executor.submit(contextvars.copy_context().run, work).result()
