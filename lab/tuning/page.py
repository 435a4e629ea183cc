"""The figures of a tuning as tables and plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab.plots import COLOURS, GREY, figure
from lab.report import table
from lab.tuning.measure import gain

Comparison = dict[str, Any]
PANEL_INCHES = 3.4


def comparison_table(rows: Sequence[Comparison]) -> str:
    """Return the comparisons as a table: a row for each score and size."""
    cells = []
    for row in rows:
        measure = f"{row['task']}, {row['score']}" if row["score"] not in row["task"] else row["task"]
        cells.append([measure, str(row["dimensions"]), f"{row['before']:.2f}", f"{row['after']:.2f}", gain(row)])
    return table(["task", "dimensions", "before", "after", "difference"], cells)


def recipe_table(figures: dict[str, Any]) -> str:
    """Return the recipe and what came of it as a table."""
    rows = [[name.replace("_", " "), str(value)] for name, value in figures["recipe"].items()]
    chosen = ", ".join(f"{name} {score:.2f}" for name, score in figures["choosing"].items())
    rows += [["steps", str(figures["steps"])], ["weights", f"{figures['chosen']} (on the rows for choosing: {chosen})"]]
    return table(["setting", "value"], rows)


def draw(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write the plots, loss by step, scores before and after and their differences, and return their files."""
    files: list[Path] = []
    with figure(folder, "loss", files) as [axis]:
        steps, losses = zip(*((entry["step"], entry["loss"]) for entry in figures["loss"]), strict=True)
        axis.plot(steps, losses, "o-", markersize=3, color=COLOURS[0])
        axis.set_title("Loss on the rows trained on")
        axis.set_xlabel("step (batches so far); each point is the mean since the point before", fontsize=10)
        axis.set_ylabel("loss, sum of the four sizes")
        axis.set_ylim(bottom=0)
        axis.set_xlim(left=0)
    by_task: dict[str, list[Comparison]] = {}
    for row in (*figures["held_out"], *figures["general"]):
        by_task.setdefault(row["task"], []).append(row)
    with figure(folder, "scores", files, len(by_task), PANEL_INCHES) as axes:
        _scores(axes, by_task)
    with figure(folder, "differences", files, len(by_task), PANEL_INCHES) as axes:
        _differences(axes, by_task, figures["most_lost"], {row["task"] for row in figures["general"]})
    return files


def _scores(axes: Sequence[Any], by_task: dict[str, list[Comparison]]) -> None:
    """Draw the scores, on axes that begin at 0."""
    for axis, (name, rows) in zip(axes, by_task.items(), strict=True):
        sizes = _panel(axis, name, rows)
        axis.plot(sizes, [row["before"] for row in rows], "o--", color=COLOURS[5], label="before")
        axis.plot(sizes, [row["after"] for row in rows], "o-", color=COLOURS[0], label="after")
        axis.set_ylim(min(0, *(min(row["before"], row["after"]) for row in rows)), 100)
    axes[0].set_ylabel("score, of 100")
    axes[0].legend()
    axes[0].figure.supxlabel("dimensions of the vectors", color=GREY, fontsize=11)


def _differences(
    axes: Sequence[Any], by_task: dict[str, list[Comparison]], most_lost: float, general: set[str]
) -> None:
    """Draw what each score has gained, with its interval, beside the most that may be lost, on one scale."""
    ends = [0.0, -most_lost]
    for axis, (name, rows) in zip(axes, by_task.items(), strict=True):
        sizes = _panel(axis, name, rows)
        middle = [row["difference"] for row in rows]
        low, high = ([row["difference"] if row[end] is None else row[end] for row in rows] for end in ("low", "high"))
        bars = [[m - x for m, x in zip(middle, low, strict=True)], [x - m for m, x in zip(middle, high, strict=True)]]
        axis.errorbar(sizes, middle, yerr=bars, fmt="o", capsize=4, color=COLOURS[0])
        axis.axhline(0, color=GREY, linewidth=1.2)
        if name in general:
            axis.axhline(-most_lost, color=COLOURS[4], linestyle="--", linewidth=1.2)
        ends += [*low, *high]
    room = 0.06 * (max(ends) - min(ends))
    for axis in axes:
        axis.set_ylim(min(ends) - room, max(ends) + room)
    axes[0].set_ylabel("points of 100, after less before")
    axes[0].figure.supxlabel(
        "dimensions of the vectors; bars: the interval that holds 95 % of a thousand drawings of the difference"
        "; dashed: the most that may be lost",
        color=GREY, fontsize=11,
    )  # fmt: skip


def _panel(axis: Any, name: str, rows: Sequence[Comparison]) -> list[str]:
    """Set what a task's panel is called and return its sizes."""
    score = rows[0]["score"]
    task = name.removesuffix(f"-{score}").replace("held-out", "held-out rows").replace("rows-", "rows, ")
    axis.set_title(f"{task}\n{score}".replace("_", " "), fontsize=10)
    axis.margins(x=0.12)
    return [str(row["dimensions"]) for row in rows]
