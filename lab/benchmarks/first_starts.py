"""Count which number format first starts choose on a CPU whose cores other programs use too.

python -m lab.benchmarks.first_starts /tmp/random
python -m lab.benchmarks.first_starts /tmp/random --starts 40 --busy 4
"""

import argparse
import json
import logging
import multiprocessing
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from engine.configs import read_architecture
from engine.model import Architecture
from engine.native.choice import faster_format
from engine.threads import limit_threads
from lab.report import table

logger = logging.getLogger(__name__)

COPIED_BYTES = 1 << 27  # more than caches hold
# A start is a fork of this process, which computes nothing, so each has torch and nothing else.
FORK = multiprocessing.get_context("fork")


class Start(NamedTuple):
    """What a first start chose: the format's name, the ratio that it measured, if any, and its CPU time."""

    chosen: str
    ratio: float | None
    cpu_seconds: float


def starts(a: Architecture, count: int, busy: int) -> list[Start]:
    """Return what `count` first starts chose, one after the other, beside `busy` programs that compute."""
    programs = [FORK.Process(target=_compute, daemon=True) for _ in range(busy)]
    programs += [FORK.Process(target=_copy, daemon=True)] if busy else []
    for program in programs:
        program.start()
    try:
        with FORK.Pool(1, maxtasksperchild=1) as pool:
            return pool.map(_start, [a] * count, chunksize=1)
    finally:
        for program in programs:
            program.terminate()


def _start(a: Architecture) -> Start:
    limit_threads()
    with TemporaryDirectory() as folder:
        kept, before = Path(folder, "formats.json"), time.process_time()
        chosen = str(faster_format(a, kept).dtype).removeprefix("torch.")
        seconds = time.process_time() - before
        ratios = list(json.loads(kept.read_text(encoding="utf-8")).values()) if kept.exists() else [None]
    return Start(chosen, ratios[0], seconds)


def _compute() -> None:
    while True:
        pass


def _copy() -> None:
    source = np.ones(COPIED_BYTES // 8)
    target = np.empty_like(source)
    while True:
        np.copyto(target, source)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument(
        "--busy", type=int, default=2, help="programs that compute meanwhile; with any, another copies memory"
    )
    args = parser.parse_args()
    found = starts(read_architecture(args.checkpoint), args.starts, args.busy)
    rows = []
    for chosen in sorted({start.chosen for start in found}):
        ratios = sorted(start.ratio for start in found if start.chosen == chosen and start.ratio is not None)
        spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}" if ratios else "not timed"
        rows.append([chosen, str(sum(start.chosen == chosen for start in found)), spread])
    seconds = np.mean([start.cpu_seconds for start in found])
    logger.info("%s\nCPU seconds of the choice: %.2f", table(["format", "starts", "times as fast"], rows), seconds)


if __name__ == "__main__":
    main()
