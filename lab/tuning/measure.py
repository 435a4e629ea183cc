"""What a checkpoint is worth before and after: the held-out rows and the project's general tasks, scored by mteb."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTask

from lab.evaluation.encoders import FULL, Form, FormEncoder
from lab.evaluation.local_tasks import bundled
from lab.evaluation.run import Line, Scorer, load
from lab.evaluation.samples import differences, interval
from lab.evaluation.sources import EngineSource
from lab.evaluation.store import Store
from lab.tuning.data import LABELS, SCORES, Example, Kind
from lab.tuning.split import Parts, normalised
from texts.options import EMBEDDING_DIMS

# Documents to search, training rows' besides the held-out ones: a search among few is too easy.
MOST_DOCUMENTS = 30_000
GENERAL = ("similarity", "intents", "dictionary")
FORMS = [Form(dim) for dim in EMBEDDING_DIMS]


def part_tasks(
    kind: Kind, name: str, part: Sequence[Example], train: Sequence[Example]
) -> tuple[list[AbsTask], dict[str, str]]:
    """Return the tasks that measure by a part of the rows, and the prompts of those whose queries have others."""
    [measure, *_] = kind.measures
    if kind is LABELS:
        rows = {
            split: [{"text": each.first, "label": each.label} for each in examples]
            for split, examples in (("train", train), ("test", part))
        }
        return [task_like("intents", name, measure, rows)], {}
    if kind is SCORES:
        graded = [{"sentence1": each.first, "sentence2": each.second, "score": each.score} for each in part]
        return [task_like("similarity", name, measure, {"test": graded})], {}
    tasks, prompts = list[AbsTask](), dict[str, str]()
    for prompt in sorted({example.task for example in part}):
        search = search_rows([example for example in part if example.task == prompt], train)
        for measure in kind.measures:
            task_name = f"{name}-{prompt}-{measure}"
            tasks.append(task_like("dictionary", task_name, measure, search))
            prompts[task_name] = prompt
    return tasks, prompts


def search_rows(asked: Sequence[Example], others: Iterable[Example]) -> dict[str, Any]:
    """Return queries, the documents that they search, among them those of `others`, and which answer which."""
    documents, queries = dict[tuple[str, str], str](), dict[str, dict[str, str]]()
    judged: dict[str, dict[str, int]] = {}
    for example in asked:
        document = documents.setdefault((example.title or "", example.second), f"d{len(documents)}")
        query = queries.setdefault(normalised(example.first), {"id": f"q{len(queries)}", "text": example.first})
        judged.setdefault(query["id"], {})[document] = 1
    for example in others:
        if len(documents) >= MOST_DOCUMENTS:
            break
        documents.setdefault((example.title or "", example.second), f"d{len(documents)}")
    corpus = [{"id": name, "title": title, "text": text} for (title, text), name in documents.items()]
    return {"corpus": corpus, "queries": list(queries.values()), "relevant_docs": judged, "top_ranked": None}


def task_like(bundled_name: str, name: str, main_score: str, rows: dict[str, Any]) -> AbsTask:
    """Return a task like one that comes with the project, on other rows, whose hash is its revision."""
    [model] = (task for task in bundled() if task.metadata.name == bundled_name)
    revision = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:12]
    dataset = {"path": name, "revision": revision}
    metadata = model.metadata.model_copy(update={"name": name, "main_score": main_score, "dataset": dataset})

    def load_data(self: Any, **options: Any) -> None:
        tables = {key: Dataset.from_list(each) if isinstance(each, list) else each for key, each in rows.items()}
        self.dataset = {"default": {"test": tables}} if "corpus" in tables else DatasetDict(tables)
        self.data_loaded = True

    task: AbsTask = type(name, (type(model),), {"metadata": metadata, "load_data": load_data})()
    return task


def general_tasks() -> list[AbsTask]:
    """Return the project's own tasks that show what a checkpoint has forgotten."""
    return [task for task in bundled() if task.metadata.name in GENERAL]


def score(
    checkpoint: Path, tasks: Sequence[AbsTask], prompts: dict[str, str], work: Path, forms: Sequence[Form]
) -> list[Line]:
    """Return a row of scores for each form of the checkpoint's vectors, computed by the engine that serves.

    Scores are kept in the folder `work` by the task's name, which tells its prompt.
    """
    store, scorer = Store(work / "vectors.sqlite", EngineSource(str(checkpoint))), Scorer(work)
    lines = [Line(f.name, FormEncoder(store, f, prompts, f.experiment), f) for f in forms]
    for task in tasks:
        load(task)
        for line in lines:
            scorer.score(line, task)
        task.unload_data()
    return lines


def choose(candidates: dict[str, Path], kind: Kind, parts: Parts, work: Path) -> tuple[str, dict[str, float]]:
    """Return the name of the checkpoint that is best on the rows kept for choosing, and the mean score of each."""
    tasks, prompts = part_tasks(kind, "choosing", parts.choosing, parts.train)
    means = {}
    for name, path in candidates.items():
        [line] = score(path, tasks, prompts, work, [FULL])
        means[name] = sum(line.scores.values()) / len(tasks)
    return max(means, key=lambda name: means[name]), means


def compare(before: Sequence[Line], after: Sequence[Line], tasks: Iterable[AbsTask]) -> list[dict[str, Any]]:
    """Return the scores of each task and size, times 100, and the difference with its 95 % interval."""
    rows = []
    for task in tasks:
        name = task.metadata.name
        for old, new in zip(before, after, strict=True):
            drawn = differences(new.samples[name], old.samples[name])
            low, high = interval(100 * drawn) if drawn is not None else (None, None)
            rows.append(
                {
                    "task": name, "score": task.metadata.main_score, "dimensions": new.form.embedding_dim,
                    "before": old.scores[name], "after": new.scores[name],
                    "difference": new.scores[name] - old.scores[name], "low": low, "high": high,
                }
            )  # fmt: skip
    return rows


def verdict(
    kind: Kind, held_out: Sequence[dict[str, Any]], general: Sequence[dict[str, Any]], most_lost: float
) -> list[str]:
    """Return the reasons to reject the checkpoint, in sentences; none where it is better and has not forgotten.

    Better: at every size, the interval of the difference in the kind's first measure lies above zero on the held-out
    rows. Not forgotten: no general score has lost more than `most_lost` points of 100 at any size.
    """
    reasons = [
        f"{row['task']} at {row['dimensions']} dimensions is not shown to be better: {in_words(row)}."
        for row in held_out
        if row["score"] == kind.measures[0] and (row["low"] is None or row["low"] <= 0)
    ]
    return reasons + [
        f"{row['task']} at {row['dimensions']} dimensions has lost more than {most_lost} points: {in_words(row)}."
        for row in general
        if row["difference"] < -most_lost
    ]


def in_words(row: dict[str, Any]) -> str:
    """Return a comparison in words: before, after, difference, interval."""
    return f"{row['before']:.2f} before, {row['after']:.2f} after, {gain(row)}"


def gain(row: dict[str, Any]) -> str:
    """Return the difference with its interval, if it has one."""
    return f"{row['difference']:+.2f}" + ("" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})")
