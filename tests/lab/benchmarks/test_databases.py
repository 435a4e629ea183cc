"""The vectors that all databases store: of distinct texts, in the formats that the server sends."""

import numpy as np

import encoding
from examples.trial import Question, exact, recall
from lab.benchmarks.databases import Documents, measured, recombined


def test_a_hundred_thousand_texts_are_distinct_and_the_same_in_every_run() -> None:
    texts = recombined(100_000)
    assert len({*texts}) == 100_000 and texts == recombined(100_000)


def test_formats_are_made_as_the_server_makes_them() -> None:
    vectors = encoding.cut(np.random.default_rng(0).normal(size=(8, 768)).astype("f4"), 768, normalize=True)
    documents = Documents(vectors)
    np.testing.assert_array_equal(documents(), vectors)
    np.testing.assert_array_equal(documents("ubinary"), np.packbits(vectors > 0, axis=1))
    assert documents("int8").dtype == np.int8
    np.testing.assert_allclose(np.linalg.norm(documents(dim=256), axis=1), 1, rtol=1e-6)


def test_recall_is_the_part_of_exact_search_that_is_found() -> None:
    vectors = np.eye(20, dtype="f4")
    questions = [Question("", row) for row in vectors[:4] * 2 + np.linspace(1, 0.1, 20, dtype="f4")]
    expected = exact(vectors, np.stack([question.vector for question in questions]))
    found, milliseconds = measured(lambda question: expected[0], questions)
    assert found == [expected[0].tolist()] * 4 and milliseconds >= 0
    assert recall(found[:1], expected[:1]) == 1
    assert recall([expected[0][:5]], expected[:1]) == 0.5
