"""examples/client.py: every precision, batches, and sentences where there is no vector."""

import numpy as np
import pytest

import encoding
from examples import client

TEXTS = [f"text number {i}" for i in range(5)]


@pytest.fixture(autouse=True)
def served(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URL", url)


def test_batches_are_joined_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = client.embed(TEXTS, titles=TEXTS)
    monkeypatch.setattr(client, "BATCH", 2)
    np.testing.assert_array_equal(client.embed(TEXTS, titles=TEXTS), whole)
    assert whole.shape == (5, 768) and not np.array_equal(whole, client.embed(TEXTS))
    assert not np.array_equal(client.embed(TEXTS), client.embed(TEXTS, "retrieval_query"))


@pytest.mark.parametrize("precision", client.DTYPES)
def test_every_precision_is_decoded(precision: str) -> None:
    vectors, exact = client.embed(TEXTS, dim=256, precision=precision), client.embed(TEXTS, dim=256)
    assert vectors.shape == (5, 32 if "binary" in precision else 256) and vectors.dtype == client.DTYPES[precision]
    values = encoding.dequantize(vectors, precision)
    cosines = (values * exact).sum(1) / np.linalg.norm(values, axis=1)
    assert (cosines > (0.6 if "binary" in precision else 0.999)).all()


@pytest.mark.parametrize(
    ("texts", "words"), [(["one", " "], "the text is empty or blank"), ([], "texts")], ids=["blank", "none"]
)
def test_what_the_server_refuses_is_said_in_its_words(texts: list[str], words: str, url: str) -> None:
    with pytest.raises(SystemExit, match=words) as refused:
        client.embed(texts)
    assert str(refused.value).startswith(url)


def test_without_a_server_it_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URL", "http://127.0.0.1:9/")
    with pytest.raises(SystemExit, match=r"^http://127.0.0.1:9: .*; start a server with make serve"):
        client.embed(TEXTS)
