"""Intervals: the samples are those that mteb's score is made of, and the bootstrap says what statistics says."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from lab.evaluation.encoders import Form
from lab.evaluation.local_tasks import bundled
from lab.evaluation.run import Line, Scorer, load, tables_of
from lab.evaluation.samples import differences, interval, load_samples, mean_of, per_query_name, save_samples
from lab.evaluation.store import Store

pytestmark = pytest.mark.evaluation

RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def lines(store: Store, tmp_path_factory: pytest.TempPathFactory) -> list[Line]:
    """The full vectors and the smallest ones, scored on the tasks of three kinds."""
    tables = tables_of(store, {})
    scorer = Scorer(tmp_path_factory.mktemp("scores"))
    chosen = [tables.full, next(line for line in tables.forms if line.form == Form(128, "binary"))]
    for task in bundled()[:3]:
        load(task)
        for line in chosen:
            scorer.score(line, task)
    return chosen


def test_the_samples_make_mtebs_score(lines: list[Line]) -> None:
    for line in lines:
        for name, samples in line.samples.items():
            [rows] = samples.values()
            score = spearmanr(*rows).statistic if name == "similarity" else rows.mean()
            assert 100 * score == pytest.approx(line.scores[name], abs=1e-3), name  # mteb rounds
    assert lines[0].samples["similarity"]["test/default"].shape == (2, 600)
    assert lines[0].samples["intents"]["test/default"].shape == (1, 400)
    assert lines[0].samples["dictionary"]["test/default"].shape == (1, 300)


def test_the_small_checkpoint_scores_as_its_card_says(lines: list[Line]) -> None:
    full, smallest = lines
    assert 69 < full.scores["similarity"] < 75  # 69.6 on the whole test part, of which these are a sample
    assert full.scores["intents"] > 90 and 40 < full.scores["dictionary"] < 46
    assert all(smallest.scores[name] < full.scores[name] - 1 for name in full.scores)


def test_a_real_loss_is_beyond_the_interval_and_none_is_within(lines: list[Line]) -> None:
    full, smallest = lines
    for name in full.scores:
        drawn = differences(smallest.samples[name], full.samples[name])
        assert drawn is not None and len(drawn) == 1_000
        low, high = interval(100 * drawn)
        assert low < smallest.scores[name] - full.scores[name] < high < 0
        same = differences(full.samples[name], full.samples[name])
        assert same is not None and not np.abs(same).max() > 1e-12


def test_the_interval_of_a_mean_is_what_the_normal_distribution_gives() -> None:
    a, b = RNG.normal(0.5, 0.2, 2_000), RNG.normal(0.4, 0.2, 2_000)
    drawn = differences({"test": a[None]}, {"test": b[None]})
    assert drawn is not None
    error = (a - b).std() / np.sqrt(2_000)
    low, high = interval(drawn)
    assert low == pytest.approx((a - b).mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx((a - b).mean() + 1.96 * error, abs=0.15 * error)


def test_a_mean_over_tasks_is_surer_than_one_task_and_needs_all() -> None:
    def noise(seed: int) -> np.ndarray:
        return np.random.default_rng(seed).normal(size=(1, 500))

    tasks = [differences({"test": noise(i)}, {"test": noise(i + 50)}) for i in range(9)]
    mean = mean_of(tasks)
    assert tasks[0] is not None and mean is not None
    assert mean.std() < tasks[0].std() / 2
    assert mean_of([*tasks, None]) is None
    assert differences({}, {}) is None and differences({"a": noise(1)}, {"b": noise(1)}) is None


def test_samples_are_kept_whole(tmp_path: Path) -> None:
    samples = {"test/default": RNG.normal(size=(2, 5)), "dev/en": RNG.normal(size=(1, 3))}
    save_samples(tmp_path / "made" / "a.npz", samples)
    read = load_samples(tmp_path / "made" / "a.npz")
    assert read.keys() == samples.keys() and all((read[name] == samples[name]).all() for name in samples)
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["a.npz"]


def test_mtebs_scores_have_names_of_pytrec_eval() -> None:
    assert per_query_name("ndcg_at_10") == "ndcg_cut_10" and per_query_name("map_at_1000") == "map_cut_1000"
    assert per_query_name("recall_at_100") == "recall_100" and per_query_name("hit_rate_at_1") == "success_1"
    assert per_query_name("mrr_at_10") is None and per_query_name("accuracy") is None
