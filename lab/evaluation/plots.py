"""The figures of an evaluation as plots."""

from itertools import cycle
from pathlib import Path
from typing import Any

from lab.evaluation.results import Figures
from lab.plots import COLOURS, figure


def draw(figures: Figures, folder: Path) -> list[Path]:
    """Write the plots for which there are figures into a folder and return their files."""
    files = _quality(figures, folder)
    if figures["search_tasks"]:
        files += _recall(figures, folder)
    if len(figures["formats"]) > 1:
        files += _speed(figures, folder)
    return files


def _quality(figures: Figures, folder: Path) -> list[Path]:
    """Quality against bytes of a vector, a line for each precision; beside it search tasks and binary searches."""
    files: list[Path] = []
    panels = [("rows", f"mean of {len(figures['tasks'])} tasks")]
    panels += [("search", f"mean of {len(figures['search_tasks'])} search tasks")] if figures["search_tasks"] else []
    with figure(folder, "quality", files, len(panels)) as axes:
        for axis, (key, label) in zip(axes, panels, strict=True):
            lines: dict[str, list[Figures]] = {}
            for row in figures[key]:
                lines.setdefault(row["kind"], []).append(row)
            for same in ("uint8", "binary, int8 queries"):  # the same points as int8, and as float32 queries
                lines.pop(same, None)
            for (name, rows), colour in zip(lines.items(), cycle(COLOURS)):
                shown = name.replace("int8", "int8, uint8") if name == "int8" else name
                _line(axis, rows, shown, colour, ":" if "queries" in name else "--" if "rescored" in name else "-")
            axis.set_xscale("log", base=2)
            axis.set_xticks([16, 64, 256, 1024, 4096], ["16", "64", "256", "1,024", "4,096"])
            axis.set_xlim(12, 5_000)
            axis.set_xlabel("bytes of a vector")
            axis.set_ylabel(label)
            axis.legend(fontsize=9)
        axes[0].set_title(figures["name"])
    return files


def _line(axis: Any, rows: list[Figures], name: str, colour: str, style: str) -> None:
    sizes, means = [row["bytes"] for row in rows], [row["mean"] for row in rows]
    axis.plot(sizes, means, style, marker="o", color=colour, label=name)
    if all(row["low"] is not None for row in rows):
        bounds = [[row["mean"] - row["difference"] + row[end] for row in rows] for end in ("low", "high")]
        axis.fill_between(sizes, *bounds, color=colour, alpha=0.12, linewidth=0)


def _recall(figures: Figures, folder: Path) -> list[Path]:
    """How many of the best ten by float32 are among the candidates of the binary search, a panel for each task."""
    files: list[Path] = []
    recall = figures["recall"]
    with figure(folder, "recall", files, len(recall["by_task"])) as axes:
        for axis, (task, by_size) in zip(axes, recall["by_task"].items(), strict=True):
            for (size, shares), colour in zip(by_size.items(), COLOURS, strict=False):
                axis.plot(recall["candidates"], shares, marker="o", color=colour, label=f"{size} dimensions")
            axis.set_xscale("log", base=2)
            axis.set_xticks(recall["candidates"], [str(count) for count in recall["candidates"]])
            axis.set_xlabel("candidates of the binary search")
            axis.set_title(task)
        axes[0].set_ylabel("share of the best 10 by float32")
        axes[-1].legend()
    return files


def _speed(figures: Figures, folder: Path) -> list[Path]:
    """Quality against tokens a second, a point for each number format of the engine."""
    files: list[Path] = []
    with figure(folder, "speed", files) as [axis]:
        for row, colour in zip(figures["formats"], COLOURS, strict=False):
            spread = None
            if row["low"] is not None:
                spread = [[row["difference"] - row["low"]], [row["high"] - row["difference"]]]
            axis.errorbar(
                [row["tokens_per_s"]], [row["mean"]], yerr=spread, fmt="o", markersize=9, capsize=4, color=colour,
                label=row["format"],
            )  # fmt: skip
        axis.set_xlim(0, 1.25 * max(row["tokens_per_s"] for row in figures["formats"]))
        axis.margins(y=0.5)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set_xlabel("tokens a second")
        axis.set_ylabel(f"mean of {len(figures['tasks'])} tasks")
        axis.legend()
    return files
