"""OpenAI's client for Python."""

import base64
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"


@pytest.fixture(scope="module")
def client(apis: str) -> OpenAI:
    return OpenAI(base_url=f"{apis}/v1", api_key="none", max_retries=0)


def embed(client: OpenAI, texts: Any, model: str = MODEL, **options: Any) -> list[list[float]]:
    """Return the vectors of one request."""
    return [each.embedding for each in client.embeddings.create(model=model, input=texts, **options).data]


@pytest.mark.parametrize("encoding_format", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_texts_are_documents_in_every_format(client: OpenAI, predict: Predict, encoding_format: dict[str, Any]) -> None:
    vectors: list[Any] = embed(client, DOCUMENTS, **encoding_format)
    if encoding_format.get("encoding_format") == "base64":
        vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
    check_same(vectors, predict(DOCUMENTS))


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({"model": f"{MODEL}:retrieval_query"}, "retrieval_query"),
        ({"model": "embeddinggemma:clustering"}, "clustering"),
        ({"model": "google/embeddinggemma-300m", "extra_body": {"task": "none"}}, "none"),
        ({"extra_body": {"task": "retrieval.query"}}, "retrieval_query"),
        ({"extra_body": {"task": "text-matching"}}, "semantic_similarity"),
        ({"extra_body": {"input_type": "query"}}, "retrieval_query"),
    ],
)
def test_the_models_name_or_a_field_chooses_the_task(
    client: OpenAI, predict: Predict, options: dict[str, Any], task: str
) -> None:
    check_same(embed(client, QUERY, **options), predict([QUERY], task))


def test_dimensions(client: OpenAI, predict: Predict) -> None:
    check_same(embed(client, DOCUMENTS, dimensions=256), predict(DOCUMENTS, dimensions=256))


def test_another_precision_comes_as_numbers_or_not_at_all(client: OpenAI, predict: Predict) -> None:
    """The client asks for base64 unless told otherwise, and takes it for float32."""
    for precision in ("int8", "ubinary"):
        with pytest.raises(BadRequestError, match=r"encoding_format.*send encoding_format 'float'"):
            embed(client, QUERY, extra_body={"output_dtype": precision})
    bits: Any = embed(client, DOCUMENTS, encoding_format="float", extra_body={"output_dtype": "ubinary"})
    np.testing.assert_array_equal(np.array(bits, np.uint8), np.packbits(predict(DOCUMENTS) > 0, axis=1))
    check_same(embed(client, DOCUMENTS, extra_body={"output_dtype": "float"}), predict(DOCUMENTS))


def test_every_listed_model_embeds(client: OpenAI, predict: Predict) -> None:
    names = [model.id for model in client.models.list()]
    assert MODEL in names and f"{MODEL}:retrieval_query" in names
    for name in names:
        task = name.partition(":")[2] or "retrieval_document"
        check_same(embed(client, QUERY, name), predict([QUERY], task))
        assert client.models.retrieve(name).id == name


def test_another_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError, match=r"text-embedding-3-small.*embeddinggemma-300m") as caught:
        embed(client, QUERY, "text-embedding-3-small")
    assert caught.value.code == "model_not_found" and caught.value.param == "model"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 300}, "dimensions.*300"),
        ({"extra_body": {"task": "search"}}, "task.*search"),
        ({"extra_body": {"instruction": "..."}}, "instruction"),
    ],
)
def test_a_bad_request_names_the_field(client: OpenAI, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        embed(client, QUERY, **options)


def test_token_ids_of_another_tokenizer_are_refused(client: OpenAI) -> None:
    with pytest.raises(BadRequestError, match="check_embedding_ctx_length=False"):
        embed(client, [[15339, 1917]])


def test_a_long_text_is_cut_only_on_request(client: OpenAI, predict: Predict) -> None:
    with pytest.raises(BadRequestError, match=r"input\[1\].*2,048"):
        embed(client, [QUERY, LONG])
    answer = client.embeddings.with_raw_response.create(model=MODEL, input=[QUERY, LONG], extra_body={"truncate": True})
    assert answer.headers["x-truncated"] == "1"
    check_same([each.embedding for each in answer.parse().data], predict([QUERY, LONG]))
