"""What a run of `lab.benchmarks.gpu` says to commit: each constant, what was measured of it, and the decision."""

import math
from collections.abc import Iterator
from statistics import mean
from typing import Any

from lab.benchmarks import gpu_figures as names
from lab.benchmarks.gpu_figures import PASS, QUERY, SERVED, VARIANTS, Results, figures_of

Decision = tuple[str, str, str]
"""A constant and its place, what was measured, and the decision."""

HEAD = ("constant", "measured", "commit it?")
# How much faster a tile, or dependent launch, must be than what is in use: less is chance.
CLEARLY = 1.02
# The largest of these that rounding explains, and how many times the error of what is served a variant may have.
ALLOWED = {"error": 1e-3, "rounding errors": 8.0}
TIMES_THE_ERROR = 2.0
FEW_ROWS = "few_rows of MERGED"


def decisions(results: Results) -> Iterator[Decision]:
    """Yield the decisions of a run on a GPU; of half a run those that it can make."""
    if capability := figures_of(results, "checkpoint", "machine").get("capability"):
        here = f"({', '.join(map(str, capability))})"
        yield from _of_kernels(results, here)
        yield from _of_tiles(results, here)
        ratio = _ratio(results, SERVED, names.NO_WORKSPACE, PASS)
        constant = "`CUBLAS_WORKSPACE_CONFIG=:0:0` before torch starts"
        yield constant, *_judged(results, SERVED, ratio, CLEARLY, "a pass")


def _of_kernels(results: Results, here: str) -> Iterator[Decision]:
    rows = figures_of(results, "variants", VARIANTS)
    base = names.UNMERGED if PASS in rows.get(names.UNMERGED, {}) else SERVED
    for name, row in rows.items():
        if name == names.DEPENDENTLY:
            ratio = _ratio(results, FEW_ROWS, name, QUERY)
            constant = f"{here} in `SHOWN_ON`, engine/kernels/launching.py"
            yield constant, *_judged(results, name, ratio, CLEARLY, "a query of `few_rows`")
        elif kernel := name.removesuffix(" of MERGED") if name.endswith(" of MERGED") else name.partition(names.BUT)[2]:
            column, of = (QUERY, "a query") if name == FEW_ROWS else (PASS, "a pass")
            constant = f'{here} in `shown_on` of `TRIALS["{kernel}"]`, engine/faster_kernels.py'
            slow, fast = (name, names.MERGED) if name.startswith(names.BUT) else (base, name)
            yield constant, *_judged(results, fast, _ratio(results, slow, fast, column), row.get(names.WORTH, 1.0), of)


def _of_tiles(results: Results, here: str) -> Iterator[Decision]:
    places = {
        names.WITH_GEGLU: f"`TILES[{here}]`, engine/kernels/matmuls.py",
        names.OF_FEW_ROWS: "`FEW`, engine/kernels/matmuls.py",
        names.OF_ATTENTION: f"`TILINGS[{here}]`, engine/kernels/qkv_attention.py",
    }
    for group, place in places.items():
        rows = figures_of(results, "tiles", group)
        (served, now) = next(
            ((name, row[names.NOW]) for name, row in rows.items() if {"us", names.NOW} <= row.keys()), ("", "")
        )
        right = [name for name in rows if name.startswith("Til") and "dependent" not in name]
        us = {name: rows[name]["us"] for name in right if not wrong(results, name)}
        if us and served:
            best = min(us, key=us.__getitem__)
            measured = f"{us[best]:.1f} us; `{now}` {us.get(now, math.inf):.1f}; {served} {rows[served]['us']:.1f}"
            faster = us.get(now, math.inf) > us[best] * CLEARLY
            yield place, measured, f"**yes: `{best}`**" if faster else "no: none is clearly faster"


def _judged(results: Results, name: str, ratio: float, worth: float, of: str) -> tuple[str, str]:
    """Return what was measured, and the decision."""
    measured = f"{ratio:.3f} times as fast, {of}; {worth:g} is asked" if ratio else "nothing"
    if fault := wrong(results, name):
        return measured, f"no: {fault}"
    if not ratio:
        return measured, "not known"
    return measured, "**yes**" if ratio >= worth else "no: not fast enough"


def wrong(results: Results, name: str) -> str:
    """Return in words why a variant or a tile must not be used, "" if nothing is known against it."""
    tried = figures_of(results, "rehearsal", names.ALONE)
    if (row := tried.get(name)) is None:
        return "it failed, or was not tried, in a process of its own"
    if row.get("changed") and not tried.get(SERVED, {}).get("changed"):
        return f"a text's vector changed {row['changed']:.0f} times"
    limits: dict[str, Any] = dict(ALLOWED)
    if "worst" in row and (served := tried.get(SERVED)):
        limits["worst"] = TIMES_THE_ERROR * served["worst"]
    return next(
        (f"its error is {row[each]:.1e}" for each in limits if each in row and not row[each] <= limits[each]), ""
    )


def _ratio(results: Results, base: str, name: str, column: str) -> float:
    """Return how many times as fast a variant is as another, by this column; 0 if one was not measured."""
    rows = {row: figures for step in ("workspace", "variants")
            for row, figures in figures_of(results, step, VARIANTS).items()}  # fmt: skip
    bases = [rows[each][column] for each in (base, *[names.AGAIN] * (base == SERVED)) if column in rows.get(each, {})]
    return mean(bases) / rows[name][column] if bases and column in rows.get(name, {}) else 0.0
