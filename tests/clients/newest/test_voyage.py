"""Voyage's client: texts, and documents in chunks."""

from typing import Any

import httpx
import numpy as np
import pytest
import voyageai
from voyageai.chunking import default_chunk_fn
from voyageai.error import AuthenticationError, InvalidRequestError

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"
TEXT = "".join(f"In the year {year} the river rose, and nobody wrote it down.\n" for year in range(900, 1030))


@pytest.fixture(scope="module")
def client(apis: str) -> voyageai.Client:
    return voyageai.Client("none", base_url=f"{apis}/v1")


def embed(client: voyageai.Client, inputs: Any, *options: Any, **more: Any) -> list[Any]:
    """Return the vectors of all chunks."""
    results = client.contextualized_embed(inputs, MODEL, *options, **more).results
    return [vector for result in results for vector in result.embeddings]


def test_texts_by_themselves(client: voyageai.Client, predict: Predict) -> None:
    for vectors in (
        embed(client, [[text] for text in DOCUMENTS], "document"),
        embed(client, DOCUMENTS, "document", enable_auto_chunking=True),
        client.embed(DOCUMENTS, MODEL, "document").embeddings,
    ):
        check_same(vectors, predict(DOCUMENTS))
    check_same(embed(client, [QUERY], "query", output_dimension=256), predict([QUERY], "retrieval_query", 256))
    check_same(client.embed([QUERY], MODEL, "query").embeddings, predict([QUERY], "retrieval_query"))


def test_chunks_are_those_of_predictions(client: voyageai.Client, server: Any) -> None:
    inputs = {"texts": [TEXT], "chunk": 100, "late_chunking": True, "output_format": "array"}
    output = httpx.post(f"{server.predictions}/predictions", json={"input": inputs}, timeout=60).json()["output"]
    wanted = np.array(output["embedding"], "f4")
    chunks = [TEXT[start:end] for _, start, end in output["chunks"]]
    check_same(embed(client, [chunks], "document"), wanted)
    answer = client.contextualized_embed([TEXT], MODEL, "document", enable_auto_chunking=True, chunk_size=100)
    check_same(answer.results[0].embeddings, wanted)
    assert answer.chunk_texts == [chunks] and answer.total_tokens == sum(output["token_counts"])


def test_its_own_chunks_are_cut_at_their_ends(client: voyageai.Client) -> None:
    answer = client.contextualized_embed([[TEXT]], MODEL, "document", chunk_fn=default_chunk_fn(300))
    [result] = answer.results
    assert "".join(result.chunk_texts or []) == TEXT and len(result.embeddings) == len(result.chunk_texts or []) > 20


@pytest.mark.parametrize("dtype", ["int8", "uint8", "binary", "ubinary"])
def test_precisions(client: voyageai.Client, predict: Predict, dtype: str) -> None:
    got = np.array(embed(client, [[text] for text in DOCUMENTS], output_dtype=dtype))
    bits = np.packbits(predict(DOCUMENTS) > 0, axis=1).astype(int)
    if "binary" in dtype:
        np.testing.assert_array_equal(got, bits - (128 if dtype == "binary" else 0))
    else:
        assert abs(got - (128 if dtype == "uint8" else 0)).max(axis=1).tolist() == [127, 127]


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([["a", " "]], {}, r"inputs\[0\]\[1\]: the text is empty"),
        ([["a", LONG]], {}, r"inputs\[0\]\[1\]: has .* the limit is 2,048; send it in smaller chunks"),
        ([["a", "b"]], {"input_type": "query"}, r"inputs\[0\]: it is a list of 2 texts; give each query"),
        ([["a"]], {"output_dimension": 1024}, "output_dimension: 1024"),
    ],
    ids=["blank", "long", "query", "dimension"],
)
def test_errors_are_its_own(client: voyageai.Client, inputs: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        embed(client, inputs, **options)
    with pytest.raises(InvalidRequestError, match=r"voyage-context-4.*embeddinggemma-300m"):
        client.contextualized_embed([["a"]], "voyage-context-4")


def test_a_key(apis_with_key: str) -> None:
    def ask(key: str) -> int:
        client = voyageai.Client(key, base_url=f"{apis_with_key}/v1")
        return client.contextualized_embed([["a"]], MODEL).total_tokens

    assert ask("secret") > 1
    with pytest.raises(AuthenticationError, match="API_KEY"):
        ask("wrong")
