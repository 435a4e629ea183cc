"""The figures of a tuning as tables and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import table
from evaluation.plots import COLOURS, figure

Comparison = dict[str, Any]


def comparison_table(rows: Sequence[Comparison]) -> str:
    """Return the comparisons as a table: a row for each score and size."""
    cells = []
    for row in rows:
        bounds = "" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
        difference = f"{row['difference']:+.2f}{bounds}"
        measure = f"{row['task']}, {row['score']}" if row["score"] not in row["task"] else row["task"]
        cells.append([measure, str(row["dimensions"]), f"{row['before']:.2f}", f"{row['after']:.2f}", difference])
    return table(["task", "dimensions", "before", "after", "difference"], cells)


def recipe_table(figures: dict[str, Any]) -> str:
    """Return the recipe and what came of it as a table."""
    rows = [[name.replace("_", " "), str(value)] for name, value in figures["recipe"].items()]
    chosen = ", ".join(f"{name} {score:.2f}" for name, score in figures["choosing"].items())
    rows += [["steps", str(figures["steps"])], ["weights", f"{figures['chosen']} (on the rows for choosing: {chosen})"]]
    return table(["setting", "value"], rows)


def draw(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write the plots, loss by step and scores before and after, and return their files."""
    files: list[Path] = []
    with figure(folder, "loss", files) as [axis]:
        axis.plot(
            [entry["step"] for entry in figures["loss"]], [entry["loss"] for entry in figures["loss"]], color=COLOURS[0]
        )
        axis.set_xlabel("step")
        axis.set_ylabel("loss, of all sizes together")
        axis.set_ylim(bottom=0)
    names = list(dict.fromkeys(row["task"] for row in (*figures["held_out"], *figures["general"])))
    with figure(folder, "scores", files, len(names), 3.4) as axes:
        for axis, name in zip(axes, names, strict=True):
            rows = [row for row in (*figures["held_out"], *figures["general"]) if row["task"] == name]
            sizes = [str(row["dimensions"]) for row in rows]
            axis.plot(sizes, [row["before"] for row in rows], "o--", color=COLOURS[5], label="before")
            after = [row["after"] for row in rows]
            spread = None
            if all(row["low"] is not None for row in rows):
                spread = [[r["difference"] - r["low"] for r in rows], [r["high"] - r["difference"] for r in rows]]
            axis.errorbar(sizes, after, yerr=spread, fmt="o-", capsize=4, color=COLOURS[0], label="after")
            axis.set_title(name.replace("held-out-", "held-out, "), fontsize=10)
            axis.set_xlabel("dimensions")
        axes[0].set_ylabel("score")
        axes[0].legend()
    return files
