"""How much faster one way to compute is than another on this machine: timed once and kept in a JSON file."""

import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from statistics import median

# Rounds in which both ways are timed: enough where the ratio is CLEAR times off the one that decides, and at most.
ENOUGH_ROUNDS, MOST_ROUNDS, CLEAR = 16, 48, 1.1


def times_as_fast(
    slow: Callable[[], object], fast: Callable[[], object], worth: float, clock: Callable[[], float]
) -> float:
    """Return how many times as fast `fast` is as `slow`, by the least time that each took on the clock, in seconds.

    They take turns, so whatever slows the machine down for a while meets both. They are timed longer where the ratio
    is near `worth`, which decides, or on the other side of it than the median of the rounds' ratios.
    """
    seconds: list[list[float]] = [[], []]
    for timed in range(1, MOST_ROUNDS + 1):
        for run, taken in zip((slow, fast), seconds, strict=True):
            start = clock()
            run()
            taken.append(clock() - start)
        ratio = min(seconds[0]) / min(seconds[1])
        typical = median(a / b for a, b in zip(*seconds, strict=True))
        clear = not worth / CLEAR < ratio < worth * CLEAR and (ratio >= worth) == (typical >= worth)
        if clear and timed >= ENOUGH_ROUNDS:
            break
    return ratio


def kept_ratio(kept: Path | None, circumstances: str, measure: Callable[[], float]) -> float:
    """Return the ratio that the file has for these circumstances, or else measure it and write it there."""
    measured = _read(kept)
    if circumstances not in measured:
        measured[circumstances] = measure()
        _write(kept, measured)
    return measured[circumstances]


def _read(kept: Path | None) -> dict[str, float]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        if kept is not None:
            measured = json.loads(kept.read_text(encoding="utf-8"))
            return {str(name): float(ratio) for name, ratio in measured.items()}
    return {}


def _write(kept: Path | None, measured: dict[str, float]) -> None:
    """Keep a measurement. If the folder cannot be written, the next start just measures again."""
    if kept is None:
        return
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(measured, indent=1), encoding="utf-8")
        partial.replace(kept)
