"""Gives every service an engine that fails on demand: as the file that FAULT names says, once for each writing of it.

While that file says `wait`, the service does not begin to start. `hold` holds a batch back while there is a file of the
same name with `.held` at its end.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from engine.contract import Ranges
from service import Service


class ThreadDeath(BaseException):
    """What no handler of Exception catches."""


_start = Service.start


def start(service: Service) -> None:
    """Start as usual, then put the faults in front of the engine."""
    file = Path(os.environ["FAULT"])
    with suppress(FileNotFoundError):
        while file.read_text(encoding="utf-8") == "wait":
            time.sleep(0.05)
    _start(service)
    launch = service.engine.launch

    def faulty(token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        fault = file.read_text(encoding="utf-8") if file.exists() else ""
        file.unlink(missing_ok=True)
        if fault == "raise":
            raise RuntimeError("injected")
        if fault == "die":
            raise ThreadDeath("injected")
        if fault.startswith("sleep"):
            time.sleep(float(fault.split()[1]))
        while fault == "hold" and file.with_suffix(".held").exists():
            time.sleep(0.01)
        return launch(token_ids, ranges)

    service.engine.launch = faulty  # type: ignore[method-assign]


Service.start = start  # type: ignore[method-assign, assignment]
