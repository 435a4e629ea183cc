"""Cohere's client, with the second version of its API and the first."""

import base64
from typing import Any

import cohere
import numpy as np
import pytest

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"


@pytest.fixture(scope="module")
def client(apis: str) -> cohere.ClientV2:
    return cohere.ClientV2(api_key="none", base_url=apis)


def embed(client: cohere.ClientV2, texts: list[str], **options: Any) -> Any:
    """Return the vectors of one request, in every format that was asked for."""
    return client.embed(**{"model": MODEL, "input_type": "search_document", "texts": texts} | options).embeddings


@pytest.mark.parametrize(
    ("input_type", "task"),
    [
        ("search_document", "retrieval_document"),
        ("search_query", "retrieval_query"),
        ("classification", "classification"),
        ("clustering", "clustering"),
    ],
)
def test_the_input_type_chooses_the_task(client: cohere.ClientV2, predict: Predict, input_type: str, task: str) -> None:
    check_same(embed(client, DOCUMENTS, input_type=input_type).float_, predict(DOCUMENTS, task))


def test_more_texts_than_the_client_sends_at_once(client: cohere.ClientV2, predict: Predict) -> None:
    texts = [f"text {i}" for i in range(100)]
    check_same(embed(client, texts, embedding_types=["float"]).float_, predict(texts))


def test_formats_and_dimensions(client: cohere.ClientV2, predict: Predict) -> None:
    formats = ["float", "int8", "uint8", "binary", "ubinary", "base64"]
    vectors = embed(client, DOCUMENTS, embedding_types=formats, output_dimension=256)
    expected = predict(DOCUMENTS, dimensions=256)
    check_same(vectors.float_, expected)
    check_same([np.frombuffer(base64.b64decode(each), "<f4") for each in vectors.base64], expected)
    np.testing.assert_array_equal(np.array(vectors.ubinary, np.uint8), np.packbits(expected > 0, axis=1))
    assert np.shape(vectors.int8) == np.shape(vectors.uint8) == (2, 256)


def test_a_long_text_is_cut_unless_it_is_to_be_refused(client: cohere.ClientV2, predict: Predict) -> None:
    check_same(embed(client, [LONG]).float_, predict([LONG]))
    with pytest.raises(cohere.BadRequestError, match="2,048"):
        embed(client, [LONG], truncate="NONE")


def test_fewer_tokens_and_texts_as_inputs(client: cohere.ClientV2, predict: Predict) -> None:
    inputs = [{"content": [{"type": "text", "text": text}]} for text in DOCUMENTS]
    answer: Any = client.embed(model=MODEL, input_type="search_document", inputs=inputs, priority=1)
    check_same(answer.embeddings.float_, predict(DOCUMENTS))
    long = " ".join(f"word{i}" for i in range(300))
    assert embed(client, [long], max_tokens=64).float_ != embed(client, [long]).float_
    with pytest.raises(cohere.BadRequestError, match="the limit is 64"):
        embed(client, [long], max_tokens=64, truncate="NONE")


def test_errors(client: cohere.ClientV2) -> None:
    with pytest.raises(cohere.NotFoundError, match=r"embed-v4.0.*embeddinggemma-300m"):
        embed(client, DOCUMENTS, model="embed-v4.0")
    with pytest.raises(cohere.BadRequestError, match=r"output_dimension.*300"):
        embed(client, DOCUMENTS, output_dimension=300)


def test_the_first_version_of_the_api(apis: str, predict: Predict) -> None:
    client = cohere.Client(api_key="none", base_url=apis)
    documents = client.embed(model=MODEL, texts=DOCUMENTS, input_type="search_document")
    check_same(documents.embeddings, predict(DOCUMENTS))
    query: Any = client.embed(model=MODEL, texts=[QUERY], input_type="search_query", embedding_types=["float"])
    check_same(query.embeddings.float_, predict([QUERY], "retrieval_query"))
