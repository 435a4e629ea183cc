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

from fetching.whole import put_in_place
from lab.tuning.batches import Batches, deal, keep_apart
from lab.tuning.data import LABELS, SCORES, Example, Kind
from lab.tuning.recipe import Recipe

logger = logging.getLogger("tuning")

# Queries whose similarities to all documents are in memory at once.
QUERIES_AT_ONCE = 1_024


@dataclass(frozen=True, slots=True)
class Prepared:
    """The trainer's columns, and the positions of the rows in each batch, epoch after epoch."""

    columns: dict[str, list[Any]]
    batches: Batches
    why_left_out: str
    """In words, why some rows may be in no batch."""
    groups: list[int] | None = None
    """The number of each row's label: rows of the same label are not each other's wrong answers."""
    teacher: np.ndarray | None = None
    """The untuned model's unit vectors, [rows, columns, 768], where it is distilled."""


def prepare(
    kind: Kind, examples: Sequence[Example], model: SentenceTransformer, recipe: Recipe, work: Path
) -> Prepared:
    """Return columns and batches. Mined negatives are kept in the folder `work` for when a killed training goes on."""
    rng = random.Random(recipe.seed)
    if kind is LABELS:
        prepared = labelled(examples, recipe, rng)
    else:
        first, second = map(list, zip(*(example.prompted() for example in examples), strict=True))
        if kind is SCORES:
            scores = scaled([example.score for example in examples])
            batches = [batch for _ in range(recipe.epochs) for batch in deal(scores, recipe.batch, rng)]
            why = "as rows with other scores are too few for each batch to have one"
            return Prepared({"a": first, "b": second, "score": scores}, batches, why)
        columns = {"anchor": first, "positive": second}
        columns |= negative_columns(examples, model, recipe, work / "negatives.json")
        rows = list(zip(*columns.values(), strict=True))
        batches = [batch for _ in range(recipe.epochs) for batch in keep_apart(rows, recipe.batch, rng)]
        prepared = Prepared(columns, batches, "as they share texts with others, or too few were left for a batch")
    if recipe.distill:
        encoded = [
            model.encode(texts, batch_size=recipe.mini_batch, normalize_embeddings=True, show_progress_bar=False)
            for texts in prepared.columns.values()
        ]
        prepared = replace(prepared, teacher=np.stack(encoded, axis=1).astype(np.float32))
    return prepared


def labelled(examples: Sequence[Example], recipe: Recipe, rng: random.Random) -> Prepared:
    """Return each text beside another of its label, drawn anew in each epoch."""
    numbers = {label: i for i, label in enumerate(dict.fromkeys(example.label for example in examples))}
    anchors, positives, groups, batches = list[str](), list[str](), list[int](), Batches()
    for _ in range(recipe.epochs):
        start, pairs = len(groups), list(same_label(examples, rng))
        anchors += [first.prompted()[0] for first, _ in pairs]
        positives += [second.prompted()[0] for _, second in pairs]
        groups += [numbers[first.label] for first, _ in pairs]
        batches += [[start + i for i in batch] for batch in deal(groups[start:], recipe.batch, rng)]
    why = "as rows of other labels are too few for each batch to have one"
    return Prepared({"anchor": anchors, "positive": positives}, batches, why, groups)


def scaled(scores: Sequence[float]) -> list[float]:
    """Return the scores on a scale of 0 to 1: only their order matters to the loss."""
    low, high = min(scores) / 2, max(scores) / 2  # halves, as the difference of two huge scores overflows
    return [(score / 2 - low) / (high - low) for score in scores]


def same_label(examples: Sequence[Example], rng: random.Random) -> Iterator[tuple[Example, Example]]:
    """Yield each example with another of its label, so that each is once the first and once the second."""
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

    A negative taken at random adds little, as the other rows of the batch are such negatives anyway.
    """
    mined = [list[str]() for _ in examples]
    if any(len(example.negatives) < recipe.negatives for example in examples):
        if not kept.is_file():
            write_json(kept, mine(examples, model, recipe))
        mined = json.loads(kept.read_text(encoding="utf-8"))
    rng = random.Random(recipe.seed)
    positives = [example.prompted()[1] for example in examples]
    rows = []
    for example, positive, found in zip(examples, positives, mined, strict=True):
        chosen = list(dict.fromkeys([*example.negatives, *found]))[: recipe.negatives]
        while len(chosen) < recipe.negatives:
            other = rng.choice(positives)
            chosen += [other] if other != positive else []
        rows.append(chosen)
    return {f"negative_{i + 1}": [row[i] for row in rows] for i in range(recipe.negatives)}


def mine(examples: Sequence[Example], model: SentenceTransformer, recipe: Recipe) -> list[list[str]]:
    """Return for each example the documents that the model finds most like its query, without the query's positives.

    Documents within the margin of the positive are left out, as they may be right answers that nobody has marked:
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


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that the file is whole whenever it is there."""
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    put_in_place(unfinished, path)
