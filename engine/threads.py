"""PyTorch on a CPU computes in one thread at a time, or at half its speed."""

import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def in_own_thread(work: Callable[[], Result]) -> Result:
    """Return work(), computed in a thread that has ended when this returns. Raises what it raises.

    For everything that is computed before the thread that serves. A thread that computes keeps helpers as long as it
    lives. Where there are more of them than cores, the OpenMP runtime (libgomp, `gomp_throttled_spin_count_var`) puts
    them to sleep between any two operations, which doubles the time.
    """
    with ThreadPoolExecutor(1, "apart") as thread:
        return thread.submit(contextvars.copy_context().run, work).result()
