"""The training rows as the trainer's columns: texts under their prompts, hard negatives, the teacher's vectors."""

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.sampler import DefaultBatchSampler
from sentence_transformers.util import mine_hard_negatives

from tuning.data import LABELS, SCORES, Example, Kind
from tuning.recipe import Recipe

# Queries whose similarities to all documents are in memory at once.
QUERIES_AT_ONCE = 1_024

Columns = dict[str, Any]


def columns_of(
    kind: Kind, examples: Sequence[Example], model: SentenceTransformer, recipe: Recipe, work: Path
) -> Columns:
    """Return the columns of all epochs; of labels each epoch pairs a text with another one of its label.

    What is mined is kept in the folder `work`, so that a training which was killed goes on with the same.
    """
    if kind is SCORES:
        first, second = zip(*(example.prompted() for example in examples), strict=True)
        return {"a": list(first), "b": list(second), "score": scaled([example.score for example in examples])}
    if kind is LABELS:
        columns: Columns = {"anchor": [], "positive": [], "group": []}
        rng = random.Random(recipe.seed)
        for _ in range(recipe.epochs):
            for example, other in same_label(examples, rng):
                columns["anchor"].append(example.prompted()[0])
                columns["positive"].append(other.prompted()[0])
                columns["group"].append(example.label)
    else:
        first, second = zip(*(example.prompted() for example in examples), strict=True)
        columns = {"anchor": list(first), "positive": list(second)}
        columns |= negative_columns(examples, model, recipe, work / "negatives.json")
    if recipe.distill:
        texts = [columns[name] for name in columns if name != "group"]
        encoded = [model.encode(each, batch_size=recipe.mini_batch, normalize_embeddings=True) for each in texts]
        columns["label"] = np.stack(encoded, axis=1).astype(np.float32)  # [rows, columns, 768]
    return columns


def scaled(scores: Sequence[float]) -> list[float]:
    """Return the scores from 0 to 1, in the same order: what matters to the loss is which is greater."""
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) for score in scores]


def same_label(examples: Sequence[Example], rng: random.Random) -> Iterator[tuple[Example, Example]]:
    """Yield each example with another one of its label: every one is once the first and once the second."""
    by_label = defaultdict(list)
    for example in examples:
        by_label[example.label].append(example)
    for same in by_label.values():
        rng.shuffle(same)
        yield from zip(same, same[1:] + same[:1], strict=True)


def negative_columns(
    examples: Sequence[Example], model: SentenceTransformer, recipe: Recipe, kept: Path
) -> dict[str, list[str]]:
    """Return a column of texts for each hard negative: the row's own first, then mined ones, then others at random.

    A negative taken at random is what every other row of the batch is anyway.
    """
    if not recipe.negatives:
        return {}
    own = [example.negatives for example in examples]
    mined = [list[str]() for _ in examples]
    if any(len(each) < recipe.negatives for each in own):
        if kept.is_file():
            mined = json.loads(kept.read_text(encoding="utf-8"))
        else:
            mined = mine(examples, model, recipe)
            unfinished = kept.with_suffix(".unfinished")
            unfinished.write_text(json.dumps(mined), encoding="utf-8")
            unfinished.rename(kept)
    rng = random.Random(recipe.seed)
    positives = [example.prompted()[1] for example in examples]
    rows = []
    for example, given, found in zip(examples, own, mined, strict=True):
        chosen = list(dict.fromkeys([*given, *found]))[: recipe.negatives]
        positive = example.prompted()[1]
        while len(chosen) < recipe.negatives:
            other = rng.choice(positives)
            chosen += [other] if other != positive else []
        rows.append(chosen)
    return {f"negative_{i + 1}": [row[i] for row in rows] for i in range(recipe.negatives)}


def mine(examples: Sequence[Example], model: SentenceTransformer, recipe: Recipe) -> list[list[str]]:
    """Return for each example the documents most like its query, by the model itself, that are none of its positives.

    Those within the margin of the positive are left out, as they may be right answers that nobody has marked:
    TopK-PercPos of NV-Retriever (Moreira et al. 2024).
    """
    first, second = zip(*(example.prompted() for example in examples), strict=True)
    found = mine_hard_negatives(
        Dataset.from_dict({"anchor": list(first), "positive": list(second)}), model, num_negatives=recipe.negatives,
        relative_margin=recipe.margin, output_format="labeled-list", batch_size=recipe.mini_batch, verbose=False,
        faiss_batch_size=QUERIES_AT_ONCE,
    )  # fmt: skip
    negatives = {(row["anchor"], row["positive"][0]): row["positive"][1:] for row in found}
    return [negatives.get(pair, []) for pair in zip(first, second, strict=True)]


class DistinctGroups(DefaultBatchSampler):
    """Batches in which no two rows have the same value in a column that the loss does not see."""

    groups: Sequence[str]

    def __iter__(self) -> Iterator[list[int]]:
        """Yield positions of rows, in an order that depends on the seed and the epoch; see DefaultBatchSampler."""
        rng = random.Random(f"{self.seed}, {self.epoch}")
        waiting = defaultdict(list)
        for i in rng.sample(range(len(self.groups)), len(self.groups)):
            waiting[self.groups[i]].append(i)
        while waiting:
            # The fullest groups first, so that they are not left over in batches of their own.
            fullest = sorted(waiting, key=lambda group: -len(waiting[group]))[: self.batch_size]
            yield [waiting[group].pop() for group in fullest]
            waiting = defaultdict(list, {group: rows for group, rows in waiting.items() if rows})

    def __len__(self) -> int:
        return sum(1 for _ in self)
