"""What the trainer is given: prompts, hard negatives, pairs of one label, batches without false negatives."""

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers import SentenceTransformer

from tests.tuning.conftest import Rows, write_rows
from tuning.columns import columns_of, mine, same_label, scaled
from tuning.data import Example, read
from tuning.recipe import Recipe
from tuning.train import distinct

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
    columns = columns_of(data.kind, rows, model, Recipe(negatives=2), tmp_path)
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
    assert columns_of(data.kind, rows, model, Recipe(negatives=2), tmp_path)["negative_1"][0] == "kept"
    assert list(columns_of(data.kind, rows, model, Recipe(negatives=0), tmp_path)) == ["anchor", "positive"]


def test_the_teacher_s_vectors_are_the_untuned_model_s(
    examples: list[Example], model: SentenceTransformer, tmp_path: Path
) -> None:
    data = read(str(write_rows(tmp_path / "one.jsonl", [{"query": "q", "positive": "p"}])))
    columns = columns_of(data.kind, examples[:5], model, Recipe(negatives=0, distill=1), tmp_path)
    assert columns["label"].shape == (5, 2, 768) and columns["label"].dtype == np.float32
    assert np.abs(columns["label"][:, 1] - model.encode(columns["positive"])).max() < 1e-6


def test_every_text_is_paired_with_another_of_its_label() -> None:
    examples = [Example(i, f"text {i}", label=str(i % 7)) for i in range(100)]
    found = list(same_label(examples, random.Random(0)))
    assert all(a.label == b.label and a is not b for a, b in found)
    assert sorted(a.number for a, _ in found) == sorted(b.number for _, b in found) == list(range(100))


def test_no_batch_has_a_label_twice_and_every_row_comes_once() -> None:
    rng = random.Random(1)
    groups = [str(min(rng.randrange(20), rng.randrange(20))) for _ in range(500)]
    dataset = Dataset.from_dict({"anchor": [str(i) for i in range(500)]})
    sampler = distinct(groups, dataset, batch_size=8, drop_last=False, seed=3)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(max(Counter(groups[i] for i in batch).values()) == 1 and len(batch) <= 8 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == list(range(500))
    assert list(sampler) == batches
    sampler.set_epoch(1)
    assert list(sampler) != batches


def test_scores_keep_their_order_from_0_to_1() -> None:
    assert scaled([1, 5, 3]) == [0, 1, 0.5]
