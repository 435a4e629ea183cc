"""Measure a server's start, from the process to the first vector: when each phase runs, and what imports cost.

    python -m lab.benchmarks.start [CHECKPOINT]

Prints Markdown tables: phases, some within others, of the quickest of ROUNDS fresh processes; and of another process
the time in each package's own modules. The checkpoint is a directory, or small.
"""

import json
import logging
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from lab.report import table

ROOT = Path(__file__).resolve().parents[2]
ROUNDS, PACKAGES = 5, 12
RUN = "import sys; from lab.benchmarks import start; start.measure(sys.argv[1])"
IMPORTS = "import api.server, engine.packed"
IMPORTED = re.compile(r"^import time: +(\d+) \| +\d+ \| +([\w.]+)$", re.MULTILINE)
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Phases:
    """The phases so far: their names, when they began and ended, and the CPU seconds of the thread that they ran in."""

    def __init__(self) -> None:
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / TICKS_A_SECOND
        self._began = time.monotonic() - (time.clock_gettime(time.CLOCK_BOOTTIME) - began)
        self.rows: list[tuple[str, float, float, float]] = []

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        """Return work(), and note it as a phase."""
        began, cpu_s = self.now(), time.thread_time()
        try:
            return work()
        finally:
            self.rows.append((name, began, self.now(), time.thread_time() - cpu_s))

    def now(self) -> float:
        """Return the seconds since the process began."""
        return time.monotonic() - self._began

    def time(self, name: str, module: ModuleType, function: str) -> None:
        """Note each call of a module's function as a phase."""
        call = getattr(module, function)
        setattr(module, function, lambda *given, **named: self.run(name, lambda: call(*given, **named)))


def measure(checkpoint: str) -> None:
    """Start a service in this fresh process, with what a server imports, and print its phases as JSON."""
    phases = Phases()
    phases.rows.append(("interpreter, and this program", 0.0, phases.now(), time.process_time()))
    phases.run("imports of the server", lambda: import_module("api.server"))
    import engine.tokenizer
    import selfcheck
    import service
    import weights

    limit_threads = vars(engine)["limit_threads"]

    def packed_timed() -> None:
        phases.run("torch imported", limit_threads)
        phases.run("torch's users imported", lambda: import_module("engine.packed"))
        for name, function in {"network": "load_network", "extension compared": "encoder_of"}.items():
            phases.time(name, import_module("engine.packed"), function)

    vars(engine)["limit_threads"] = packed_timed
    phases.time("checkpoint found and hashed", weights, "resolve")
    phases.time("tokenizer", engine.tokenizer, "load")
    phases.time("self-check", selfcheck, "check")
    started = service.Service(checkpoint)
    phases.run("all of Service.start", started.start)
    ids = started.engine.tokenizer.encode([""], ["What is the meaning of life?"])[0].ids
    phases.run("a vector", lambda: started.engine.embed([ids]))
    started.close()
    phases.rows.append(("the process to here, all threads", 0.0, phases.now(), time.process_time()))
    print(json.dumps(phases.rows))  # noqa: T201


def fresh(*arguments: str) -> tuple[str, str]:
    """Return what a fresh interpreter with these arguments prints, and what it writes to stderr."""
    run = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return run.stdout, run.stderr


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else "small"
    measured = [json.loads(fresh("-c", RUN, checkpoint)[0]) for _ in range(1 + ROUNDS)]
    # The first reads the files, and chooses the number format.
    quickest = min(measured[1:], key=lambda rows: rows[-1][2])
    rows = [(name, *(f"{seconds:.2f}" for seconds in times)) for name, *times in quickest]
    logging.info("%s", table(["phase", "begins, s", "ends, s", "CPU, s"], rows))
    own_us, modules = Counter[str](), Counter[str]()
    for us, module in IMPORTED.findall(fresh("-X", "importtime", "-c", IMPORTS)[1]):
        top = module.partition(".")[0]
        package = "Python's own" if top in sys.stdlib_module_names else top
        own_us[package] += int(us)
        modules[package] += 1
    costs = [(name, f"{us / 1000:.0f}", str(modules[name])) for name, us in own_us.most_common(PACKAGES)]
    costs.append(("all", f"{own_us.total() / 1000:.0f}", str(modules.total())))
    logging.info("\n%s", table(["imports", "ms", "modules"], costs))


if __name__ == "__main__":
    main()
