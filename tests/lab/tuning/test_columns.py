"""What the trainer is given: prompts, hard negatives, pairs of one label, batches without false negatives."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from lab.tuning.columns import mine, prepare, same_label, scaled
from lab.tuning.data import LABELS, PAIRS, SCORES, Example, Kind, read
from lab.tuning.recipe import Recipe
from lab.tuning.train import left_out, listed
from tests.lab.tuning.conftest import Rows, write_rows

pytestmark = pytest.mark.tuning


@pytest.fixture(scope="module")
def examples(pairs: Rows, tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    return read(str(write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", pairs))).examples


def test_mined_negatives_are_the_hardest_beyond_the_margin(examples: list[Example], model: SentenceTransformer) -> None:
    """Compared with all similarities: no positive of the query, within the margin, or less like it than another."""
    again = Example(0, examples[0].first, examples[1].second, title=examples[1].title, task=examples[1].task)
    rows = [*examples, again]  # the first query has two positives
    queries, documents = zip(*(example.prompted() for example in rows), strict=True)
    similar = model.encode(list(queries)) @ model.encode(list(documents)).T
    mined = mine(rows, model, Recipe(negatives=3, margin=0.05))
    assert sum(map(len, mined)) > len(rows)
    for i, negatives in enumerate(mined):
        own = [j for j, query in enumerate(queries) if query == queries[i]]
        least = min(similar[i, j] for j in own)
        allowed = [
            j
            for j in np.argsort(-similar[i])
            if documents[j] not in {documents[k] for k in own} and similar[i, j] <= least - 0.05 * abs(least) + 1e-6
        ]
        expected = list(dict.fromkeys(documents[j] for j in allowed))
        assert negatives == expected[: len(negatives)]


def test_own_negatives_come_first_and_none_is_the_positive(
    examples: list[Example], model: SentenceTransformer, tmp_path: Path
) -> None:
    data = read(str(write_rows(tmp_path / "one.jsonl", [{"query": "q", "positive": "p", "negatives": ["given"]}])))
    rows = [*examples, *data.examples]
    columns = prepare(data.kind, rows, model, Recipe(negatives=2), tmp_path).columns
    assert list(columns) == ["anchor", "positive", "negative_1", "negative_2"]
    assert columns["negative_1"][-1] == "title: none | text: given"
    documents = set(columns["positive"])
    for anchor, positive, *negatives in zip(*columns.values(), strict=True):
        assert anchor.startswith("task: search result | query: ") and positive not in negatives
        assert negatives[1] in documents and len(set(negatives)) == 2
    kept = json.loads((tmp_path / "negatives.json").read_text(encoding="utf-8"))
    assert len(kept) == len(rows)
    kept[0] = ["kept", "too"]
    (tmp_path / "negatives.json").write_text(json.dumps(kept), encoding="utf-8")
    assert prepare(data.kind, rows, model, Recipe(negatives=2), tmp_path).columns["negative_1"][0] == "kept"
    assert list(prepare(data.kind, rows, model, Recipe(negatives=0), tmp_path).columns) == ["anchor", "positive"]


def test_the_teacher_s_vectors_are_the_untuned_model_s(
    examples: list[Example], model: SentenceTransformer, tmp_path: Path
) -> None:
    data = read(str(write_rows(tmp_path / "one.jsonl", [{"query": "q", "positive": "p"}])))
    prepared = prepare(data.kind, examples[:5], model, Recipe(negatives=0, distill=1), tmp_path)
    assert prepared.teacher is not None
    assert prepared.teacher.shape == (5, 2, 768) and prepared.teacher.dtype == np.float32
    assert np.abs(prepared.teacher[:, 1] - model.encode(prepared.columns["positive"])).max() < 1e-6


def test_every_text_is_paired_with_another_of_its_label() -> None:
    examples = [Example(i, f"text {i}", label=str(i % 7)) for i in range(100)]
    found = list(same_label(examples, random.Random(0)))
    assert all(a.label == b.label and a is not b for a, b in found)
    assert sorted(a.number for a, _ in found) == sorted(b.number for _, b in found) == list(range(100))


@pytest.mark.parametrize("kind", [PAIRS, LABELS, SCORES])
def test_each_epoch_has_its_batches(kind: Kind, model: SentenceTransformer, tmp_path: Path) -> None:
    """Of labels an epoch has rows of its own, as a text is paired with others."""
    examples = [
        Example(i, f"text {i}", "" if kind is LABELS else f"other {i}", label=str(i % 7), score=i, task=kind.task)
        for i in range(300)
    ]
    prepared = prepare(kind, examples, model, Recipe(epochs=2, batch=64, negatives=0), tmp_path)
    first, second = prepared.batches[:5], prepared.batches[5:]
    rows = [sorted(i for batch in batches for i in batch) for batches in (first, second)]
    assert rows == [list(range(300)), list(range(300, 600)) if kind is LABELS else list(range(300))]
    assert first != second
    dataset = Dataset.from_dict(prepared.columns)
    assert len(listed(prepared.batches, dataset, batch_size=64, drop_last=False)) == 10
    assert left_out(prepared, 300, 2) == []
    if prepared.groups:
        texts = {example.prompted()[0]: example.label for example in examples}
        for i, (anchor, positive) in enumerate(zip(*prepared.columns.values(), strict=True)):
            assert texts[anchor] == texts[positive] and anchor != positive
            assert prepared.groups[i] == list(dict.fromkeys(texts.values())).index(texts[anchor])


def test_rows_that_are_in_no_batch_are_counted(model: SentenceTransformer, tmp_path: Path) -> None:
    examples = [Example(i, f"text {i}", label="rare" if i < 3 else "common", task=LABELS.task) for i in range(300)]
    prepared = prepare(LABELS, examples, model, Recipe(epochs=2, batch=10), tmp_path)
    assert left_out(prepared, 300, 2) == [
        "540 of 2 times 300 rows to train on are left out, as rows of other labels are too few for each batch to have "
        "one."
    ]


def test_scores_keep_their_order_from_0_to_1() -> None:
    assert scaled([1, 5, 3]) == [0, 1, 0.5]
    assert scaled([-1.7e308, 1.7e308, 0]) == [0, 1, 0.5]
