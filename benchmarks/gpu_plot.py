"""The picture of `benchmarks.gpu`: where the time of a pass goes, and tokens a second by length, under the floor."""

import os
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.gpu_page import FLOOR, LENGTHS, PASS_TOKENS, SERVED, figures_of, pass_ms

mpl.use("Agg")
from matplotlib import pyplot

# Told apart with any eyes (Okabe and Ito's).
COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#CC79A7", "#BBBBBB")


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw what is known of the two, on white."""
    figure, (bar, lengths) = pyplot.subplots(2, 1, figsize=(9, 5), height_ratios=[1, 2], layout="constrained")
    left = 0.0
    for (name, ms), colour in zip(pass_ms(results).items(), COLOURS, strict=False):
        bar.barh([""], [ms], left=left, color=colour, label=f"{name}: {ms:.2f} ms")
        left += ms
    bar.set_title(f"{PASS_TOKENS:,} tokens of mixed texts, from texts to vectors, ms", fontsize=10)
    if left:
        bar.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, -0.25), frameon=False)
    rows = figures_of(results, "speed", LENGTHS)
    bars = lengths.bar(list(rows), [row["tokens/s"] for row in rows.values()], 0.6, color=COLOURS[0], label=SERVED)
    lengths.bar_label(bars, fmt="{:,.0f}", fontsize=8)
    if floor := figures_of(results, "ceilings", FLOOR, SERVED):
        best = [floor["TFLOP/s"] / row["MFLOP a token"] * 1e6 for row in rows.values()]
        lengths.plot(list(rows), best, "_", color="black", markersize=30, label="the floor")
    lengths.yaxis.set_major_formatter("{x:,.0f}")
    lengths.set_title("tokens a second by length of the texts", fontsize=10)
    if rows:
        lengths.legend(
            fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1), markerscale=0.5, frameon=False
        )
    for axis in (bar, lengths):
        axis.spines[["top", "right"]].set_visible(False)
    unfinished = path.with_name(f"{path.name}.unfinished")
    figure.savefig(unfinished, dpi=150, format="png")
    pyplot.close(figure)
    os.replace(unfinished, path)
