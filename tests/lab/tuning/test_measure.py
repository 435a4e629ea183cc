"""What is measured, and when a checkpoint is better and has not forgotten."""

from pathlib import Path
from typing import Any

import pytest

from lab.evaluation.encoders import FULL
from lab.tuning.data import LABELS, PAIRS, SCORES, Example, read
from lab.tuning.measure import part_tasks, score, search_rows, task_like, verdict
from tests.lab.tuning.conftest import Rows, write_rows
from weights import SMALL

pytestmark = pytest.mark.tuning


def comparison(low: float | None, difference: float = 1.0, **more: Any) -> dict[str, Any]:
    return {
        "task": "held-out", "score": "ndcg_at_10", "dimensions": 768, "before": 50.0, "after": 50.0 + difference,
        "difference": difference, "low": low, "high": 3.0,
    } | more  # fmt: skip


def test_better_is_an_interval_above_zero_at_every_size() -> None:
    general = [comparison(-1.0, -2.0, task="similarity", score="cosine_spearman")]
    assert verdict(PAIRS, [comparison(0.1), comparison(0.2, dimensions=128)], general, 2.0) == []
    assert verdict(PAIRS, [comparison(0.1), comparison(-0.2, dimensions=128)], general, 2.0) == [
        "held-out at 128 dimensions is not shown to be better: 50.00 before, 51.00 after, +1.00 (-0.20 to +3.00)."
    ]
    assert len(verdict(PAIRS, [comparison(None)], general, 2.0)) == 1
    recall = comparison(-0.2, score="recall_at_10")  # is told beside, and decides nothing
    assert verdict(PAIRS, [comparison(0.1), recall], general, 2.0) == []


def test_a_general_task_may_not_lose_more_than_is_stated() -> None:
    general = [comparison(-4.0, -2.01, task="similarity", score="cosine_spearman", dimensions=256, high=-1.0)]
    [reason] = verdict(LABELS, [comparison(0.1, score="accuracy")], general, 2.0)
    assert reason == (
        "similarity at 256 dimensions has lost more than 2.0 points: 50.00 before, 47.99 after, -2.01 (-4.00 to -1.00)."
    )
    assert verdict(LABELS, [comparison(0.1, score="accuracy")], general, 2.5) == []


def test_queries_look_for_their_documents_among_the_training_ones() -> None:
    asked = [Example(1, "Query", "one", title="t"), Example(2, "query ", "two"), Example(3, "other", "two")]
    rows = search_rows(asked, [Example(4, "x", "three"), Example(5, "y", "one", title="t")])
    assert [(row["title"], row["text"]) for row in rows["corpus"]] == [("t", "one"), ("", "two"), ("", "three")]
    assert [row["text"] for row in rows["queries"]] == ["Query", "other"]
    assert rows["relevant_docs"] == {"q0": {"d0": 1, "d1": 1}, "q1": {"d1": 1}}


def test_other_rows_are_another_revision() -> None:
    """Scores kept by a run that was killed are not those of other rows."""
    ours, same, other = (
        task_like("similarity", "held-out", "cosine_spearman", {"test": [{"score": score}]}) for score in (1, 1, 2)
    )
    revisions = [task.metadata.revision for task in (ours, same, other)]
    assert revisions[0] == revisions[1] != revisions[2]


def test_each_task_is_measured_under_its_own_prompt(tmp_path: Path, pairs: Rows) -> None:
    tasks = [None, "question_answering"]
    rows = [row | {"task": tasks[i % 2]} for i, row in enumerate(pairs)]
    examples = read(str(write_rows(tmp_path / "rows.jsonl", rows))).examples
    measured, prompts = part_tasks(PAIRS, "held-out", examples[:60], examples[60:])
    assert prompts == {
        f"held-out-{task}-{measure}": task
        for task in ("question_answering", "retrieval_query")
        for measure in PAIRS.measures
    }
    [line] = score(SMALL, measured, prompts, tmp_path, [FULL])
    [other] = score(SMALL, measured, dict.fromkeys(prompts, "retrieval_query"), tmp_path / "other", [FULL])
    assert line.scores["held-out-retrieval_query-ndcg_at_10"] == other.scores["held-out-retrieval_query-ndcg_at_10"]
    ours, theirs = (each.samples["held-out-question_answering-ndcg_at_10"]["test/default"] for each in (line, other))
    assert ours.shape == (1, 30) and (ours != theirs).any()
    assert (
        0 < line.scores["held-out-retrieval_query-ndcg_at_10"] <= line.scores["held-out-retrieval_query-recall_at_10"]
    )


def test_scores_and_labels_are_measured_by_mteb_s_tasks(tmp_path: Path, labelled: Rows) -> None:
    graded = [Example(i, f"the number {i}", f"the number {i + i % 7}", score=7 - i % 7) for i in range(60)]
    [task], _ = part_tasks(SCORES, "held-out", graded, [])
    [line] = score(SMALL, [task], {}, tmp_path / "work", [FULL])
    assert line.samples["held-out"]["test/default"].shape == (2, 60) and line.scores["held-out"] > 30
    examples = read(str(write_rows(tmp_path / "rows.jsonl", labelled))).examples
    [task], _ = part_tasks(LABELS, "held-out", examples[:60], examples[60:])
    [line] = score(SMALL, [task], {}, tmp_path / "labels", [FULL])
    assert line.samples["held-out"]["test/default"].shape == (1, 60)
