"""The two searches of one's own, held against plain loops."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from mteb.models import EncoderProtocol
from mteb.models.models_protocols import SearchProtocol

import encoding
from lab.evaluation.encoders import BinarySearch, ChunkSearch, Form, Search, candidate_recall, nearest
from lab.evaluation.local_tasks import bundled
from lab.evaluation.sources import EngineSource
from lab.evaluation.store import Store
from texts.chunking import Chunking

pytestmark = pytest.mark.evaluation

METADATA = {task.metadata.name: task.metadata for task in bundled()}["dictionary"]
WORDS = ["river", "bridge", "paint", "spring", "report", "dust", "planet", "yeast", "sugar", "bread", "red", "storm"]
RNG = np.random.default_rng(3)
DOCUMENTS = [" ".join(RNG.choice(WORDS, size=8)) for _ in range(30)]
QUERIES = ["a cold storm over the river", "bread with sugar", "the red planet"]


def found(search: Search, documents: list[str], top_k: int = 5) -> dict[str, dict[str, float]]:
    corpus = Dataset.from_list([{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(documents)])
    queries = Dataset.from_list([{"id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)])
    asked: Any = {
        "task_metadata": METADATA,
        "hf_split": "test",
        "hf_subset": "default",
        "encode_kwargs": {},
        "num_proc": 1,
    }
    assert isinstance(search, SearchProtocol) and not isinstance(search, EncoderProtocol)
    search.index(corpus, **asked)
    return search.search(queries, top_k=top_k, **asked)


@pytest.fixture
def vectors(source: EngineSource) -> tuple[np.ndarray, np.ndarray]:
    documents = source.embed(DOCUMENTS, [None] * len(DOCUMENTS), "retrieval_document", None).vectors
    return source.embed(QUERIES, [None] * len(QUERIES), "retrieval_query", None).vectors, documents


@pytest.mark.parametrize("by", ["float32", "int8"])
def test_rescoring_puts_the_candidates_of_the_binary_search_in_order(
    store: Store, vectors: tuple[np.ndarray, np.ndarray], by: str
) -> None:
    queries, documents = vectors
    result = found(BinarySearch(store, Form(256, "binary", rescored_by=by), 2, {}, {}), DOCUMENTS)
    for i, query in enumerate(queries):
        distances = (np.sign(query[:256]) != np.sign(documents[:, :256])).sum(axis=1)
        candidates = np.argsort(distances, kind="stable")[:8]  # four times the two results
        kept = Form(256, by).apply(documents[candidates])
        cosines = kept @ Form(256).apply(query[None])[0]
        order = np.argsort(-cosines)[:5]
        assert list(result[f"q{i}"]) == [f"d{candidates[j]}" for j in order]
        assert np.allclose(list(result[f"q{i}"].values()), cosines[order], atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_queries_of_numbers_are_multiplied_with_the_documents_signs(
    store: Store, vectors: tuple[np.ndarray, np.ndarray], precision: str
) -> None:
    queries, documents = vectors
    result = found(BinarySearch(store, Form(128, "binary", precision), 2, {}, {}), DOCUMENTS)
    for i, query in enumerate(queries):
        numbers = encoding.dequantize(encoding.convert(query[:128], precision), precision)
        scores = np.where(documents[:, :128] > 0, numbers, -numbers).sum(axis=1)
        assert list(result[f"q{i}"]) == [f"d{j}" for j in np.argsort(-scores, kind="stable")[:5]]


def test_few_bits_find_what_all_components_rank(store: Store, vectors: tuple[np.ndarray, np.ndarray]) -> None:
    queries, documents = vectors
    result = found(BinarySearch(store, Form(128, "binary", "float32", "float32", 768), 2, {}, {}), DOCUMENTS)
    for i, query in enumerate(queries):
        scores = np.sign(documents[:, :128]) @ query[:128]
        candidates = np.argsort(-scores, kind="stable")[:8]  # four times the two results
        best = candidates[np.argsort(-(documents[candidates] @ query))][:5]
        assert list(result[f"q{i}"]) == [f"d{j}" for j in best]


def test_a_document_is_as_near_as_its_nearest_chunk(store: Store, source: EngineSource) -> None:
    documents = ["\n".join(DOCUMENTS[i : i + 10]) for i in (0, 10, 20)] + [""]
    result = found(ChunkSearch(store, Chunking(32, 8), {}, {}), documents)
    queries = source.embed(QUERIES, [None] * 3, "retrieval_query", None).vectors
    for i, query in enumerate(queries):
        for name, score in result[f"q{i}"].items():
            chunks = source.embed([documents[int(name[1:])]], [None], "retrieval_document", Chunking(32, 8)).vectors
            assert len(chunks) > 2 and abs(score - (chunks @ query).max()) < 1e-6
        assert result[f"q{i}"].keys() == {"d0", "d1", "d2"}  # the empty one has no chunk and is never found
        assert list(result[f"q{i}"].values()) == sorted(result[f"q{i}"].values(), reverse=True)


def test_nearest_is_a_sort(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    queries, documents = vectors
    best = nearest(np.tile(queries, (200, 1)), documents, 7)  # more queries than are compared at once
    for query, row in zip(queries, best[300:303], strict=True):
        assert row.tolist() == np.argsort(-(documents @ query), kind="stable")[:7].tolist()


def test_recall_grows_to_one_with_the_candidates(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    queries, documents = vectors
    shares = candidate_recall(queries, documents, 128, 10, [5, 10, 20, 30])
    assert shares == sorted(shares) and shares[0] <= 0.5 and shares[-1] == 1
    wanted = np.argsort(-(Form(128).apply(documents) @ Form(128).apply(queries[:1])[0]))[:10]
    signs = Form(128, "binary")
    candidates = np.argsort(-(signs.apply(documents) @ signs.apply(queries[:1])[0]), kind="stable")[:20]
    assert candidate_recall(queries[:1], documents, 128, 10, [20]) == [len(set(wanted) & set(candidates)) / 10]
