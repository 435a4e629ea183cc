"""Options: what is refused, and what becomes of vectors by them."""

from typing import Any

import numpy as np
import pytest

from texts.chunking import Chunking
from texts.options import Options, chunking_of


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"task": "search"}, "task: 'search' is unknown; use one of retrieval_document, retrieval_query"),
        ({"embedding_dim": 100}, "embedding_dim: 100 is unknown; use one of 768, 512, 256, 128"),
        ({"precision": "int4"}, "precision: 'int4' is unknown; use one of float32"),
        ({"truncate": "middle"}, "truncate: 'middle' is unknown; use one of end, start, none"),
    ],
)
def test_an_unknown_choice_is_refused_with_the_choices(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        Options(**fields)


def test_vectors_are_cut_then_normalised_then_converted() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 768)).astype(np.float32) * 100
    unit = Options(embedding_dim=256).finish(vectors)
    np.testing.assert_allclose(unit, vectors[:, :256] / np.linalg.norm(vectors[:, :256], axis=1, keepdims=True), 1e-6)
    np.testing.assert_array_equal(Options(normalize=False).finish(vectors), vectors)
    for precision, width in (("int8", 512), ("ubinary", 64)):
        options = Options(embedding_dim=512, precision=precision)
        assert options.finish(vectors).shape == (3, options.width) == (3, width)


def test_they_are_described_in_words() -> None:
    described = Options(precision="int8", normalize=False, chunking=Chunking(64, 8, late=True)).described()
    assert described == {
        "task": "retrieval_document",
        "dimensions": "768",
        "precision": "int8",
        "normalized": "false",
        "truncate": "end",
        "prompts_in_texts": "any task",
        "chunk": "64",
        "overlap": "8",
        "late": "true",
    }


def test_a_request_without_chunk_is_not_cut() -> None:
    assert chunking_of(None, 0, late_chunking=False) is None
    assert chunking_of(64, 8, late_chunking=True) == Chunking(64, 8, late=True)
