"""LiteLLM, a client of many APIs."""

import os
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise it looks for a list of prices on the internet

import litellm

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"
# The path that each provider wants in api_base.
PATHS = {
    "openai": "/v1",
    "hosted_vllm": "/v1",
    "jina_ai": "/v1",
    "voyage": "/v1",
    "gemini": "/v1beta",
    "cohere": "/v2/embed",
    "ollama": "",
    "huggingface": "",
}


def embed(apis: str, provider: str, texts: list[str], model: str = MODEL, **options: Any) -> list[Any]:
    """Return the vectors of one request."""
    if provider == "huggingface":
        options["input_type"] = "feature-extraction"  # otherwise it asks huggingface.co what the model is for
    answer = litellm.embedding(
        f"{provider}/{model}", texts, api_base=apis + PATHS[provider], api_key="none", max_retries=0, **options
    )
    return [each["embedding"] for each in answer.data]


@pytest.mark.parametrize("provider", PATHS)
def test_texts_are_documents(apis: str, predict: Predict, provider: str) -> None:
    check_same(embed(apis, provider, DOCUMENTS), predict(DOCUMENTS))


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("openai", {"model": f"{MODEL}:retrieval_query"}),
        ("openai", {"input_type": "query"}),
        ("hosted_vllm", {"model": f"{MODEL}:retrieval_query"}),
        ("jina_ai", {"task": "retrieval.query"}),
        ("voyage", {"input_type": "query"}),
        ("gemini", {"task_type": "RETRIEVAL_QUERY"}),
        ("cohere", {"input_type": "search_query"}),
        ("ollama", {"model": f"{MODEL}:retrieval_query"}),
        ("huggingface", {"prompt_name": "query"}),
    ],
)
def test_queries(apis: str, predict: Predict, provider: str, options: dict[str, Any]) -> None:
    check_same(embed(apis, provider, [QUERY], **options), predict([QUERY], "retrieval_query"))


@pytest.mark.parametrize(
    ("provider", "options"),
    [
        ("openai", {"allowed_openai_params": ["dimensions"]}),
        ("voyage", {}),
        ("gemini", {}),
        ("cohere", {}),
        ("ollama", {}),
    ],
)
def test_dimensions(apis: str, predict: Predict, provider: str, options: dict[str, Any]) -> None:
    check_same(embed(apis, provider, DOCUMENTS, dimensions=256, **options), predict(DOCUMENTS, dimensions=256))


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm", "gemini", "cohere", "ollama"])
def test_another_model_is_not_found(apis: str, provider: str) -> None:
    with pytest.raises(litellm.NotFoundError, match=r"bge-m3.*embeddinggemma-300m"):
        embed(apis, provider, [QUERY], "bge-m3")


def test_a_bad_request_names_the_field(apis: str) -> None:
    with pytest.raises(litellm.BadRequestError, match="2,048"):
        embed(apis, "openai", [LONG])
    with pytest.raises(litellm.BadRequestError, match=r"outputDimensionality.*300"):
        embed(apis, "gemini", [QUERY], dimensions=300)
