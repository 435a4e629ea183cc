"""What a checkpoint is worth before and after: the held-out rows and the project's general tasks, scored by mteb."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mteb.abstasks import AbsTask

from evaluation.encoders import FULL, Form, FormEncoder
from evaluation.local_tasks import bundled, classification, own, similarity
from evaluation.make_tasks import write_jsonl
from evaluation.run import Line, Scorer, load
from evaluation.samples import differences, interval
from evaluation.sources import EngineSource
from evaluation.store import Store
from texts.options import EMBEDDING_DIMS
from tuning.data import LABELS, PAIRS, Example, Kind
from tuning.split import Parts, normalised

# Documents to search, of the training rows besides the held-out ones: a search among few is too easy.
MOST_DOCUMENTS = 30_000
GENERAL = ("similarity", "intents", "dictionary")
FORMS = [Form(dim) for dim in EMBEDDING_DIMS]


@dataclass(frozen=True, slots=True)
class Measured:
    """Tasks, and the task's prompt for some of their names; those that are `held_out` are to become better."""

    held_out: list[AbsTask]
    general: list[AbsTask]
    prompts: dict[str, str]


def tasks_of(kind: Kind, parts: Parts, work: Path) -> Measured:
    """Return the tasks of the held-out part and the general ones."""
    held_out, prompts = part_tasks(kind, "held-out", parts.held_out, parts.train, work)
    return Measured(held_out, [task for task in bundled() if task.metadata.name in GENERAL], prompts)


def part_tasks(
    kind: Kind, name: str, part: Sequence[Example], train: Sequence[Example], work: Path
) -> tuple[list[AbsTask], dict[str, str]]:
    """Write a part of the rows as files in the folder `work`, and return its tasks, with their prompts by name."""
    if kind is LABELS:
        folder = work / name
        for split, examples in (("train", train), ("test", part)):
            write_jsonl(folder / f"{split}.jsonl", ({"text": each.first, "label": each.label} for each in examples))
        return [classification(name, folder)], {}
    if kind is not PAIRS:
        path = work / name / "pairs.jsonl"
        rows = ({"sentence1": each.first, "sentence2": each.second, "score": each.score} for each in part)
        write_jsonl(path, rows)
        return [similarity(name, path)], {}
    tasks, prompts = list[AbsTask](), dict[str, str]()
    for prompt in sorted({example.task for example in part}):
        asked = [example for example in part if example.task == prompt]
        folder = work / f"{name}-{prompt}"
        write_search(folder, asked, train)
        for score in kind.measures:
            task_name = f"{name}-{prompt}-{score}"
            tasks.append(own(folder, task_name, score))
            prompts[task_name] = prompt
    return tasks, prompts


def write_search(folder: Path, asked: Sequence[Example], others: Iterable[Example]) -> None:
    """Write queries, the documents among which they look for theirs, and which are theirs, as BEIR does."""
    documents: dict[tuple[str, str], str] = {}
    for example in asked:
        documents.setdefault((example.title or "", example.second), f"d{len(documents)}")
    for example in others:
        if len(documents) >= MOST_DOCUMENTS:
            break
        documents.setdefault((example.title or "", example.second), f"d{len(documents)}")
    corpus = ({"_id": name, "title": title, "text": text} for (title, text), name in documents.items())
    write_jsonl(folder / "corpus.jsonl", corpus)
    queries: dict[str, tuple[str, str]] = {}
    judged = {}
    for example in asked:
        name, _ = queries.setdefault(normalised(example.first), (f"q{len(queries)}", example.first))
        judged[name, documents[example.title or "", example.second]] = 1
    write_jsonl(folder / "queries.jsonl", ({"_id": name, "text": text} for name, text in queries.values()))
    rows = ({"query-id": query, "corpus-id": document, "score": 1} for query, document in judged)
    write_jsonl(folder / "judgements.jsonl", rows)


def score(
    checkpoint: Path, tasks: Sequence[AbsTask], prompts: dict[str, str], work: Path, forms: Sequence[Form]
) -> list[Line]:
    """Return a row of scores for each form of the checkpoint's vectors, computed by the engine as it is served."""
    store = Store(work / "vectors.sqlite", EngineSource(str(checkpoint)))
    scorer = Scorer(work)
    lines = []
    named = hashlib.sha256(json.dumps(prompts, sort_keys=True).encode()).hexdigest()[:12]  # is part of file names
    for form in forms:
        experiment = form.experiment | {"prompts": named}
        lines.append(Line(form.name, experiment, FormEncoder(store, form, prompts, experiment), form))
    for task in tasks:
        load(task)
        for line in lines:
            scorer.score(line, task)
        task.unload_data()
    return lines


def main_mean(line: Line, tasks: Sequence[AbsTask]) -> float:
    """Return the mean of a row's scores on tasks."""
    return sum(line.scores[task.metadata.name] for task in tasks) / len(tasks)


def choose(candidates: dict[str, Path], kind: Kind, parts: Parts, work: Path) -> tuple[str, dict[str, float]]:
    """Return the name of the checkpoint that is best on the rows kept for choosing, and the mean score of each."""
    tasks, prompts = part_tasks(kind, "choosing", parts.choosing, parts.train, work)
    scores = {name: main_mean(score(path, tasks, prompts, work, [FULL])[0], tasks) for name, path in candidates.items()}
    return max(scores, key=lambda name: scores[name]), scores


def compare(before: Sequence[Line], after: Sequence[Line], tasks: Iterable[AbsTask]) -> list[dict[str, Any]]:
    """Return for each task and size the scores times 100, and the difference with its 95 % interval."""
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
    """Return why the checkpoint is not to be used, in sentences; none where it is better and has not forgotten.

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
    bounds = "" if row["low"] is None else f" ({row['low']:+.2f} to {row['high']:+.2f})"
    return f"{row['before']:.2f} before, {row['after']:.2f} after, {row['difference']:+.2f}{bounds}"
