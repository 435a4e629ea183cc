"""Measure how long a forward pass takes to launch, operation by operation, beside a thread that keeps Python busy.

    python -m benchmarks.launching

Each of the 400 small operations of a pass gives up the interpreter's lock and has to get it back. The other thread
holds it for so many milliseconds at a time, as an event loop or a library's C code does. Prints a Markdown table.
"""

import logging
import sys
import threading
import time

import torch

from benchmarks.report import table

logger = logging.getLogger(__name__)

OPERATIONS, LEAST_S = 400, 1.5
HELD_MS = (0.3, 1.0, 20.0)
SWITCH_INTERVALS_MS = (5.0, 1.0, 0.2)  # the first is Python's own


def pass_ms() -> float:
    """Return the milliseconds of a pass, on average."""
    x, out = torch.ones(64), torch.empty(64)
    start, passes = time.perf_counter(), 0
    while (seconds := time.perf_counter() - start) < LEAST_S:
        passes += 1
        for _ in range(OPERATIONS):
            torch.add(x, x, out=out)
    return seconds / passes * 1e3


def pass_ms_beside(held_ms: float) -> float:
    """Return the same beside a thread that holds the lock for so long, with no point at which it could be asked."""
    numbers = 1_000
    while (seconds := _sum_s(numbers)) < held_ms / 1e3:
        numbers *= 2
    numbers = int(numbers * held_ms / 1e3 / seconds)
    stop = threading.Event()

    def hold() -> None:
        while not stop.is_set():
            _sum_s(numbers)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        return pass_ms()
    finally:
        stop.set()
        thread.join()


def _sum_s(numbers: int) -> float:
    start = time.perf_counter()
    sum(range(numbers))
    return time.perf_counter() - start


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows = []
    for interval_ms in SWITCH_INTERVALS_MS:
        sys.setswitchinterval(interval_ms / 1e3)
        milliseconds = [pass_ms(), *(pass_ms_beside(held_ms) for held_ms in HELD_MS)]
        rows.append([f"{interval_ms} ms", *(f"{value:.1f}" for value in milliseconds)])
    head = ["switch interval", "ms alone", *(f"beside {held_ms} ms" for held_ms in HELD_MS)]
    logger.info("%s", table(head, rows))


if __name__ == "__main__":
    main()
