"""Google's client for Gemini."""

from typing import Any

import pytest
from google import genai
from google.genai import errors, types

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"


@pytest.fixture(scope="module", params=["v1", "v1beta"])
def client(request: pytest.FixtureRequest, apis: str) -> genai.Client:
    """The client with its own default of the API's version, and with the one it had before."""
    return genai.Client(api_key="none", http_options=types.HttpOptions(base_url=apis, api_version=request.param))


def embed(client: genai.Client, texts: str | list[str], model: str = MODEL, **config: Any) -> list[Any]:
    """Return the vectors of one request."""
    answer = client.models.embed_content(model=model, contents=texts, config=types.EmbedContentConfig(**config))
    return [each.values for each in answer.embeddings or []]


def test_the_clients_default_version_is_served(apis: str, predict: Predict) -> None:
    client = genai.Client(api_key="none", http_options=types.HttpOptions(base_url=apis))
    check_same(embed(client, QUERY), predict([QUERY]))


def test_texts_are_documents(client: genai.Client, predict: Predict) -> None:
    check_same(embed(client, DOCUMENTS), predict(DOCUMENTS))
    check_same(embed(client, DOCUMENTS, "google/embeddinggemma-300m"), predict(DOCUMENTS))


@pytest.mark.parametrize(
    ("task_type", "task"),
    [
        ("RETRIEVAL_QUERY", "retrieval_query"),
        ("RETRIEVAL_DOCUMENT", "retrieval_document"),
        ("SEMANTIC_SIMILARITY", "semantic_similarity"),
        ("CLASSIFICATION", "classification"),
        ("CLUSTERING", "clustering"),
        ("QUESTION_ANSWERING", "question_answering"),
        ("FACT_VERIFICATION", "fact_verification"),
        ("CODE_RETRIEVAL_QUERY", "code_retrieval"),
    ],
)
def test_the_task_type_chooses_the_task(client: genai.Client, predict: Predict, task_type: str, task: str) -> None:
    check_same(embed(client, QUERY, task_type=task_type), predict([QUERY], task))


def test_the_models_name_chooses_the_task(client: genai.Client, predict: Predict) -> None:
    check_same(embed(client, QUERY, f"{MODEL}:retrieval_query"), predict([QUERY], "retrieval_query"))


def test_dimensions(client: genai.Client, predict: Predict) -> None:
    check_same(embed(client, DOCUMENTS, output_dimensionality=128), predict(DOCUMENTS, dimensions=128))


def test_a_long_text_is_cut(client: genai.Client, predict: Predict) -> None:
    check_same(embed(client, LONG), predict([LONG]))


def test_another_model_is_not_found(client: genai.Client) -> None:
    with pytest.raises(errors.ClientError, match=r"gemini-embedding-001.*embeddinggemma-300m") as caught:
        embed(client, QUERY, "gemini-embedding-001")
    assert (caught.value.code, caught.value.status) == (404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("config", "message"),
    [({"output_dimensionality": 300}, "outputDimensionality.*300"), ({"task_type": "SEARCH"}, "taskType.*SEARCH")],
)
def test_a_bad_request_names_the_field(client: genai.Client, config: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ClientError, match=message) as caught:
        embed(client, QUERY, **config)
    assert (caught.value.code, caught.value.status) == (400, "INVALID_ARGUMENT")
