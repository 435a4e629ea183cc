"""How sure a difference is: the scores of single samples, resampled a thousand times (bootstrap).

The scores are mteb's, which has no intervals. The samples behind each score are kept beside it, and scipy resamples
them: the same samples on both sides of a difference.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mteb.abstasks import AbsTask, AbsTaskClassification, AbsTaskRetrieval, AbsTaskSTS
from scipy.stats import bootstrap, rankdata

RESAMPLES = 1_000
CONFIDENCE = 0.95
SEED = 0
# pytrec_eval's names of mteb's scores, but for their @k.
PER_QUERY = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}

Samples = dict[str, np.ndarray]
"""For each split and subset of a task [1, n], scores to be averaged, or [2, n], predicted and true similarities."""


class SampleKeeper:
    """Collects the samples of one task while mteb evaluates it."""

    def __init__(self, task: AbsTask, folder: Path) -> None:
        """`folder` is empty; mteb writes its predictions there."""
        self._task, self._folder = task, folder
        self._per_query: dict[str, Mapping[str, Mapping[str, float]]] = {}
        if isinstance(task, AbsTaskRetrieval):
            # mteb's hook for further scores; predictions on disk would be all ranks of all queries.
            task.task_specific_scores = self._keep

    @property
    def folder(self) -> Path | None:
        """Where mteb is to write its predictions, if at all."""
        return None if isinstance(self._task, AbsTaskRetrieval) else self._folder

    def _keep(
        self, scores: Any, qrels: Any, results: Any, hf_split: str, hf_subset: str, **options: Any
    ) -> dict[str, float]:
        self._per_query[f"{hf_split}/{hf_subset}"] = scores
        own = type(self._task).task_specific_scores
        return dict(own(self._task, scores, qrels, results, hf_split=hf_split, hf_subset=hf_subset, **options))

    def samples(self) -> Samples:
        """Return the samples behind mteb's score; empty if the score is not made of single samples."""
        score = self._task.metadata.main_score
        if isinstance(self._task, AbsTaskRetrieval):
            name = per_query_name(score)
            if name is None:
                return {}
            kept = self._per_query.items()
            return {part: np.array([[scores[i][name] for i in sorted(scores)]]) for part, scores in kept}
        path = self._folder / self._task.prediction_file_name
        if not path.is_file():
            return {}
        predicted = json.loads(path.read_text(encoding="utf-8"))
        predicted.pop("mteb_model_meta")
        samples: Samples = {}
        for subset, by_split in predicted.items():
            for split, content in by_split.items():
                rows = self._rows(content, subset, split)
                if rows is not None:
                    samples[f"{split}/{subset}"] = rows
        return samples

    def _rows(self, predicted: Any, subset: str, split: str) -> np.ndarray | None:
        dataset: Any = self._task.dataset
        data = dataset.get(subset, dataset)
        if isinstance(self._task, AbsTaskSTS) and self._task.metadata.main_score == "cosine_spearman":
            return np.array([predicted["cosine_scores"], data[split]["score"]])
        is_accuracy = isinstance(self._task, AbsTaskClassification) and self._task.metadata.main_score == "accuracy"
        if is_accuracy and not self._task.is_cross_validation:
            labels = np.array(data[split][self._task.label_column_name])
            return (np.array(predicted) == labels).mean(axis=0, keepdims=True)  # over the experiments
        return None


def per_query_name(score: str) -> str | None:
    """Return pytrec_eval's name of an mteb score, such as ndcg_cut_10 for ndcg_at_10; None if it has none."""
    match = re.fullmatch(r"(\w+)_at_(\d+)", score)
    return f"{PER_QUERY[match[1]]}_{match[2]}" if match and match[1] in PER_QUERY else None


def differences(samples: Samples, full: Samples) -> np.ndarray | None:
    """Return the differences of a task's score in each resampling, [RESAMPLES]; None without samples."""
    if not samples or samples.keys() != full.keys():
        return None
    return np.mean([_resampled(samples[part], full[part]) for part in sorted(samples)], axis=0)


def _resampled(samples: np.ndarray, full: np.ndarray) -> np.ndarray:
    rows = (samples[0], full[0], *samples[1:])
    statistic = _mean_difference if len(rows) == 2 else _spearman_difference
    result = bootstrap(
        rows, statistic, n_resamples=RESAMPLES, batch=100, paired=True, vectorized=True, method="percentile", rng=SEED
    )
    return np.asarray(result.bootstrap_distribution)


def _mean_difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    return np.asarray((a - b).mean(axis=axis))


def _spearman_difference(a: np.ndarray, b: np.ndarray, grades: np.ndarray, axis: int = -1) -> np.ndarray:
    ranks = [rankdata(each, axis=axis) for each in (a, b, grades)]
    x, y, z = (each - each.mean(axis=axis, keepdims=True) for each in ranks)
    x, y, z = (each / np.sqrt((each**2).sum(axis=axis, keepdims=True)) for each in (x, y, z))
    return np.asarray(((x - y) * z).sum(axis=axis))


def interval(drawn: np.ndarray) -> tuple[float, float]:
    """Return the bounds of the middle 95 % of the differences."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def save_samples(path: Path, samples: Samples) -> None:
    """Write the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".partial")
    with written.open("wb") as file:
        np.savez(file, **samples)  # type: ignore[arg-type]  # numpy takes any names, one of which has a bool
    written.rename(path)


def load_samples(path: Path) -> Samples:
    """Return the samples in a file."""
    with np.load(path) as content:
        return {name: content[name] for name in content.files}


def mean_of(drawn: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Return the differences of the mean over tasks, each resampled by itself; None if a task has no samples."""
    known = [each for each in drawn if each is not None]
    return np.mean(known, axis=0) if known and len(known) == len(drawn) else None
