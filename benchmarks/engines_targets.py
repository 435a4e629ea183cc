"""The speeds that the packed engine should reach, as ratios to other engines, and whether it does."""

from typing import Any

from benchmarks.report import table
from benchmarks.scenarios import TARGETED

FULL_SHAPE = {"layers": 24, "hidden": 768}
TARGETS = {
    "plain": (5.0, 5.5, 2.5, 3.3, 4.0),
    "reference": (7.0, 6.0, 3.5, 4.0, 4.0),
    "reference-bfloat16": (2.8, 2.3, 2.3, 2.2, 1.5),
}
"""For each engine how many times as fast `packed` should be, in the scenarios of TARGETED."""

CAPTION = "Targets for packed in bfloat16, on two cores with AMX and the full shape:"


def targets(results: dict[str, Any]) -> str:
    """Return a caption and a table of ratios and targets, or "" unless the results are of what the targets are for.

    That is the full shape, with `packed` as the first engine and in bfloat16.
    """
    first, *others = results["engines"]
    against = [engine for engine in others if engine in TARGETS]
    is_full_shape = FULL_SHAPE.items() <= results["architecture"].items()
    is_packed = first == "packed" and "bfloat16" in results["engines"][first]["description"]
    speedups = {scenario["name"]: scenario["speedup"] for scenario in results["scenarios"]}
    rows = [
        [name, *(_verdict(speedups[name][engine], TARGETS[engine][i]) for engine in against)]
        for i, name in enumerate(TARGETED)
        if name in speedups
    ]
    if not (is_full_shape and is_packed and against and rows):
        return ""
    return f"{CAPTION}\n\n" + table(["texts", *(f"vs {engine}" for engine in against)], rows)


def _verdict(ratio: float, target: float) -> str:
    return f"{ratio:.2f}x of {target:.1f}x, {'reached' if ratio >= target else 'missed'}"
