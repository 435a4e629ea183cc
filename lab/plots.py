"""The style of every plot: PNG and SVG, in colours that can be read on white and on black."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

# Of medium lightness: about as far from white as from black.
GREY = "#7d8590"
COLOURS = ["#3d8fd1", "#9a76d4", "#2e9e6b", "#b98512", "#e0574f", "#c4608f"]
STYLE: Any = {
    "text.color": GREY, "axes.labelcolor": GREY, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GREY, "grid.alpha": 0.25,
    "legend.frameon": False, "savefig.transparent": True, "font.size": 11, "svg.hashsalt": "lab",
}  # fmt: skip


@contextmanager
def figure(folder: Path, name: str, files: list[Path], panels: int = 1, inches: float = 6.5) -> Iterator[Any]:
    """Yield the panels, each `inches` wide, to draw on; then write NAME.png and NAME.svg and add them to `files`."""
    with pyplot.rc_context(STYLE):
        drawn, axes = pyplot.subplots(1, panels, figsize=(inches * panels, 4.6), layout="constrained", squeeze=False)
        yield axes[0]
        for suffix in ("png", "svg"):
            files.append(folder / f"{name}.{suffix}")
            drawn.savefig(files[-1], dpi=120, metadata={"Date": None} if suffix == "svg" else None)
        pyplot.close(drawn)


def bars(axis: Any, groups: Sequence[str], series: Mapping[str, Sequence[float]], shown: str = "{:,.0f}") -> None:
    """Draw a group of bars for each of `groups`, with a bar for each series, labelled in the format `shown`."""
    width = 0.8 / len(series)
    for i, (name, heights) in enumerate(series.items()):
        positions = [group + (i - (len(series) - 1) / 2) * width for group in range(len(groups))]
        drawn = axis.bar(positions, heights, width, label=name, color=COLOURS[i % len(COLOURS)])
        axis.bar_label(drawn, fmt=shown, fontsize=7, rotation=0 if len(series) == 1 else 90, padding=3)
    axis.set_xticks(range(len(groups)), groups)
    axis.margins(y=0.15)
