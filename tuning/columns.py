"""What the trainer is given: texts under their prompts, hard negatives, the teacher's vectors, and the batches."""

import contextlib
import json
import logging
import os
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from tuning.batches import Batches, Texts, deal, keep_apart
from tuning.data import LABELS, SCORES, Example, Kind
from tuning.recipe import Recipe

logger = logging.getLogger("tuning")

# Queries whose similarities to all documents are in memory at once.
QUERIES_AT_ONCE = 1_024


@dataclass(frozen=True, slots=True)
class Prepared:
    """The trainer's columns, and the positions of the rows in each batch, all epochs' one after another."""

    columns: dict[str, list[Any]]
    batches: Batches
    why_left_out: str
    """In words, why some rows may be in no batch."""
    groups: list[int] | None = None
    """For each row, the number of its label: rows of the same one are not each other's wrong answers."""
    teacher: np.ndarray | None = None
    """The untuned model's unit vectors, [rows, columns, 768], where it is distilled."""


def prepare(
    kind: Kind, examples: Sequence[Example], model: SentenceTransformer, recipe: Recipe, work: Path
) -> Prepared:
    """Return columns and batches.

    What is mined is kept in the folder `work`, so that a training which was killed goes on with the same.
    """
    rng = random.Random(recipe.seed)
    if kind is SCORES:
        return scored(examples, recipe, rng)
    if kind is LABELS:
        prepared = labelled(examples, recipe, rng)
    else:
        first, second = zip(*(example.prompted() for example in examples), strict=True)
        columns = {"anchor": list(first), "positive": list(second)}
        columns |= negative_columns(examples, model, recipe, work / "negatives.json")
        rows = [Texts.of(texts[:2], texts[2:]) for texts in zip(*columns.values(), strict=True)]
        batches = [batch for _ in range(recipe.epochs) for batch in keep_apart(rows, recipe.batch, rng)]
        prepared = Prepared(columns, batches, "as they share texts with others, or too few were left for a batch")
    if recipe.distill:
        encoded = [
            model.encode(texts, batch_size=recipe.mini_batch, normalize_embeddings=True, show_progress_bar=False)
            for texts in prepared.columns.values()
        ]
        prepared = replace(prepared, teacher=np.stack(encoded, axis=1).astype(np.float32))
    return prepared


def scored(examples: Sequence[Example], recipe: Recipe, rng: random.Random) -> Prepared:
    """Return pairs of texts with their scores."""
    first, second = zip(*(example.prompted() for example in examples), strict=True)
    scores = scaled([example.score for example in examples])
    batches = [batch for _ in range(recipe.epochs) for batch in deal(scores, recipe.batch, rng)]
    why = "as rows with other scores are too few for each batch to have one"
    return Prepared({"a": list(first), "b": list(second), "score": scores}, batches, why)


def labelled(examples: Sequence[Example], recipe: Recipe, rng: random.Random) -> Prepared:
    """Return texts with others of their labels, which in each epoch are others."""
    numbers = {label: i for i, label in enumerate(dict.fromkeys(example.label for example in examples))}
    anchors, positives, groups, batches = list[str](), list[str](), list[int](), Batches()
    for epoch in range(recipe.epochs):
        pairs = list(same_label(examples, rng))
        anchors += [first.prompted()[0] for first, _ in pairs]
        positives += [second.prompted()[0] for _, second in pairs]
        groups += [numbers[first.label] for first, _ in pairs]
        start = epoch * len(pairs)
        batches += [[start + i for i in batch] for batch in deal(groups[start:], recipe.batch, rng)]
    why = "as rows of other labels are too few for each batch to have one"
    return Prepared({"anchor": anchors, "positive": positives}, batches, why, groups)


def scaled(scores: Sequence[float]) -> list[float]:
    """Return the scores from 0 to 1, in the same order: what matters to the loss is which is greater."""
    low, high = min(scores) / 2, max(scores) / 2  # halves, as the difference of two large ones is beyond all numbers
    return [(score / 2 - low) / (high - low) for score in scores]


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
    pairs = Dataset.from_dict({"anchor": list(first), "positive": list(second)})
    logger.info("Looking for hard negatives of %s queries", f"{len(examples):,}")
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # bars that no option turns off
        found = mine_hard_negatives(
            pairs, model, num_negatives=recipe.negatives, relative_margin=recipe.margin, output_format="labeled-list",
            batch_size=recipe.mini_batch, verbose=False, faiss_batch_size=QUERIES_AT_ONCE,
        )  # fmt: skip
    negatives = {(row["anchor"], row["positive"][0]): row["positive"][1:] for row in found}
    return [negatives.get(pair, []) for pair in zip(first, second, strict=True)]
