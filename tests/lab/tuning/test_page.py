"""The plots: axes that begin at 0 or have it, texts that are whole, and bars that say what they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.plots import figure
from lab.tuning import page

pytestmark = pytest.mark.tuning


def comparisons(task: str, score: str, difference: float | None) -> list[dict[str, Any]]:
    return [
        {
            "task": task, "score": score, "dimensions": size, "before": 80.0, "after": 80.0 + (difference or 0),
            "difference": difference or 0, "low": difference and difference - 1, "high": difference and difference + 1,
        }
        for size in (768, 512, 256, 128)
    ]  # fmt: skip


FIGURES = {
    "loss": [{"step": step, "loss": 6 / step} for step in range(1, 30)],
    "held_out": [
        *comparisons("held-out-code_retrieval-ndcg_at_10", "ndcg_at_10", 3.0),
        *comparisons("held-out-question_answering-recall_at_10", "recall_at_10", 4.0),
    ],
    "general": [*comparisons("similarity", "cosine_spearman", -0.5), *comparisons("dictionary", "ndcg_at_10", None)],
    "most_lost": 2.0,
}


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The panels of each plot, after they were written."""
    panels: dict[str, Any] = {}

    @contextmanager
    def kept(folder: Path, name: str, *options: Any) -> Iterator[Any]:
        with figure(folder, name, *options) as axes:
            yield axes
            panels[name] = axes

    monkeypatch.setattr(page, "figure", kept)
    files = page.draw(FIGURES, tmp_path)
    assert [path.name for path in files] == [f"{name}.{suffix}" for name in panels for suffix in ("png", "svg")]
    return panels


def test_no_text_is_cut_off_or_over_another(drawn: dict[str, Any]) -> None:
    for axes in drawn.values():
        picture = axes[0].figure
        picture.canvas.draw()
        outside = [picture._supxlabel] if picture._supxlabel else []
        texts = [*outside, *(text for axis in axes for text in (axis.title, axis.xaxis.label, axis.yaxis.label))]
        texts = [text for text in texts if text.get_text()]
        boxes = [text.get_window_extent() for text in texts]
        for i, box in enumerate(boxes):
            whole = picture.bbox.padded(2)  # a text's box is a pixel or so larger than its letters
            assert whole.containsx(box.x0) and whole.containsx(box.x1), texts[i]
            assert whole.containsy(box.y0) and whole.containsy(box.y1), texts[i]
            assert not any(box.overlaps(other) for other in boxes[:i])


def test_axes_do_not_mislead(drawn: dict[str, Any]) -> None:
    """Scores and losses are drawn from 0; differences on one scale, which has 0, and with all of their bars."""
    assert [axis.get_ylim()[0] for axis in (*drawn["loss"], *drawn["scores"])] == [0] * 5
    limits = {axis.get_ylim() for axis in drawn["differences"]}
    [(low, high)] = limits
    assert low < -2 and high > 5  # of 4 points and one more
    for axis in drawn["differences"][:3]:
        [bars] = [each for each in axis.containers if each.has_yerr]
        ends = [y for line in bars[2][0].get_segments() for _, y in line]
        assert len(ends) == 8 and low < min(ends) and max(ends) < high
    assert "95 %" in drawn["differences"][0].figure._supxlabel.get_text()
