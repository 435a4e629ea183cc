"""The vectors against sentence-transformers' own `encode`, through predictions as a user makes them."""

import json
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import encoding
from engine.contract import CheckpointError
from tasks import PROMPTS
from tests.support.checkpoints import on_small
from tests.support.predictions import TEXTS, Predict

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

    from engine.reference import ReferenceEngine

SOME = TEXTS[:5]  # the long ones take most of the time and are for one task, below


@pytest.fixture(scope="module", params=["packed", "reference"])
def engine_name(request: pytest.FixtureRequest) -> str:
    """Both engines must give what sentence-transformers gives."""
    name: str = request.param
    return name


@cache
def load_theirs(checkpoint: Path) -> "SentenceTransformer":
    """Return sentence-transformers without its Normalize module, so that lengths can be compared as well."""
    from sentence_transformers import SentenceTransformer  # takes seconds

    model = SentenceTransformer(str(checkpoint), device="cpu")
    return SentenceTransformer(modules=list(model)[:-1], device="cpu")


@cache
def encoded_by_theirs(checkpoint: Path, task: str, dim: int = 768, normalize: bool = False) -> np.ndarray:
    """Return what sentence-transformers makes of SOME, once for both engines."""
    prompt = PROMPTS[task].replace("{title}", "none")
    model = load_theirs(checkpoint)
    return np.asarray(model.encode(SOME, prompt=prompt, normalize_embeddings=normalize, truncate_dim=dim))


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> "SentenceTransformer":
    return load_theirs(checkpoint)


def compare(ours: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Compare directions and lengths; return the lengths."""
    assert ours.shape == expected.shape
    norms, expected_norms = np.linalg.norm(ours, axis=1), np.linalg.norm(expected, axis=1)
    assert (1 - (ours * expected).sum(axis=1) / norms / expected_norms).max() < 1e-6
    np.testing.assert_allclose(norms, expected_norms, rtol=1e-5)
    return norms


@pytest.mark.parametrize(
    ("checkpoint", "task"),
    [*(("small", task) for task in PROMPTS), ("random_weights", "retrieval_document")],
    indirect=["checkpoint"],
)
def test_vectors_equal_sentence_transformers(predict: Predict, checkpoint: Path, task: str) -> None:
    ours = encoding.decode(predict(texts=SOME, task=task, normalize=False))
    assert ours.shape == (len(SOME), 768)
    assert np.abs(compare(ours, encoded_by_theirs(checkpoint, task)) - 1).max() > 0.01


@on_small
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", [768, 512, 256, 128])
def test_cut_vectors_equal_those_that_sentence_transformers_cuts(
    predict: Predict, checkpoint: Path, dim: int, normalize: bool
) -> None:
    """For one task, as vectors are cut after they are computed."""
    task = "retrieval_query"
    ours = encoding.decode(predict(texts=SOME, task=task, embedding_dim=dim, normalize=normalize))
    assert ours.shape == (len(SOME), dim)
    norms = compare(ours, encoded_by_theirs(checkpoint, task, dim, normalize))
    assert not normalize or np.abs(norms - 1).max() < 1e-6


@on_small
def test_titles_and_truncated_texts_equal_sentence_transformers(
    predict: Predict, theirs: "SentenceTransformer"
) -> None:
    texts = [TEXTS[0], *TEXTS[-2:]]
    answer = predict(texts=texts, titles=["Mars", "", "Words"])
    for text, title, ours in zip(texts, ["Mars", "none", "Words"], encoding.decode(answer), strict=True):
        expected = theirs.encode(text, prompt=f"title: {title} | text: ", normalize_embeddings=True)
        assert 1 - ours @ expected < 1e-6
    assert answer["truncated"] == [2]
    assert answer["token_counts"][2] == 2048


@on_small
def test_a_text_has_the_same_vector_alone_and_in_company(checkpoint: Path) -> None:
    from engine.reference import ReferenceEngine

    engine = ReferenceEngine(checkpoint, device="cpu")
    texts = [text.ids for text in engine.tokenizer.encode([""] * len(TEXTS), TEXTS)]
    together = engine.embed(texts)
    alone = np.vstack([engine.embed([ids]) for ids in texts])
    difference = np.abs(together - alone).max() / np.abs(together).max()
    assert difference < 1e-5


@pytest.mark.parametrize(
    ("file", "change", "problem"),
    [
        (
            "modules.json",
            lambda modules: modules[:2] + modules[3:],
            r"modules\.json: the modules are .* expected Transf",
        ),
        ("modules.json", lambda modules: modules[:-1], r"modules\.json: the modules are .* expected Transformer"),
        (
            "config.json",
            lambda config: config | {"sliding_window": 257},
            r"config\.json: the effective .* 129, expected 257",
        ),
        ("config.json", lambda config: config | {"use_bidirectional_attention": False}, r"use_bidirectional_attention"),
    ],
    ids=["one Dense missing", "no Normalize", "window halved", "causal"],
)
def test_a_checkpoint_that_would_give_other_vectors_is_refused(
    tmp_path: Path, small: Path, file: str, change: object, problem: str
) -> None:
    from engine.reference import ReferenceEngine

    directory = tmp_path / "spoiled"
    shutil.copytree(small, directory)
    content = json.loads((directory / file).read_text(encoding="utf-8"))
    assert callable(change)
    (directory / file).write_text(json.dumps(change(content)), encoding="utf-8")
    with pytest.raises(CheckpointError, match=problem):
        ReferenceEngine(directory, device="cpu")


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_are_packed_as_sentence_transformers_packs_them(precision: str) -> None:
    from sentence_transformers.util import quantize_embeddings

    vectors = np.random.default_rng(0).standard_normal((5, 768)).astype(np.float32)
    np.testing.assert_array_equal(encoding.convert(vectors, precision), quantize_embeddings(vectors, precision))


@on_small
def test_ranges_are_refused(reference: "ReferenceEngine") -> None:
    with pytest.raises(
        ValueError, match=r"^late_chunking: ENGINE=reference has none; leave it out, or use ENGINE=packed$"
    ):
        reference.embed([[2, 50, 1]], [[(1, 2)]])


@on_small
def test_a_prediction_has_no_late_chunks_with_the_reference_engine(predict: Predict, engine_name: str) -> None:
    inputs = {"text": "word " * 100, "chunk": 20}
    assert encoding.decode(predict(**inputs)).shape[0] > 1
    if engine_name == "packed":
        assert encoding.decode(predict(**inputs, late_chunking=True)).shape[0] > 1
        return
    with pytest.raises(ValueError, match="late_chunking: ENGINE=reference has none; leave it out"):
        predict(**inputs, late_chunking=True)
