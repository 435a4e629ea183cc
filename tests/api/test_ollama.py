"""Ollama's operations: embed, tags, version."""

from typing import Any

import httpx
import numpy as np
import pytest

from tasks import PROMPTS
from tests.api.conftest import Expected

LONG = "word " * 3000


def embed(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/api/embed", json={"model": "embeddinggemma"} | body)


def vectors_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array(answer.json()["embeddings"], "f4")


def test_a_text_and_a_list_to_the_last_bit(client: httpx.Client, expected: Expected) -> None:
    one = embed(client, input="one", options={"num_ctx": None, "num_gpu": 1}, keep_alive="5m")
    two = embed(client, input=["one", "two"], model="embeddinggemma:300m", dimensions=128, keep_alive=-1)
    np.testing.assert_array_equal(vectors_of(one), expected("one"), strict=True)
    np.testing.assert_array_equal(vectors_of(two), expected("one", "two", embedding_dim=128), strict=True)
    body = one.json()
    assert body["model"] == "embeddinggemma" and body["prompt_eval_count"] > 3 and body["total_duration"] > 0


def test_the_task_comes_with_the_name_as_the_tags_list_it(client: httpx.Client, expected: Expected) -> None:
    listed = client.get("/api/tags").json()["models"]
    names = ["embeddinggemma-300m", *(f"embeddinggemma-300m:{task}" for task in PROMPTS)]
    assert [model["name"] for model in listed] == [model["model"] for model in listed] == names
    for task, name in zip(PROMPTS, names[1:], strict=True):
        vectors = vectors_of(embed(client, input="one", model=name))
        np.testing.assert_array_equal(vectors, expected("one", task=task))
    assert client.get("/api/version").json()["version"].count(".") == 2


def test_a_long_text_is_cut_unless_that_is_forbidden(client: httpx.Client, expected: Expected) -> None:
    answer = embed(client, input=["short", LONG])
    assert answer.headers["x-truncated"] == "1"
    np.testing.assert_array_equal(vectors_of(answer), expected("short", LONG))
    refused = embed(client, input=["short", LONG], truncate=False)
    assert refused.status_code == 400 and refused.json()["error"].startswith("input[1]: has 3,0")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": []}, 400, "input: 0 texts were given"),
        ({"input": ""}, 400, "input: the text is empty or blank"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions: 3 is unknown; use one of 768"),
        ({"prompt": "a"}, 400, "input: it is missing"),
        ({"input": "a", "model": "llama3"}, 404, "model: 'llama3' is not served here; use 'embeddinggemma-300m'"),
    ],
)
def test_errors_name_field_problem_and_remedy(
    client: httpx.Client, body: dict[str, Any], status: int, message: str
) -> None:
    refused = embed(client, **body)
    assert refused.status_code == status and refused.json().keys() == {"error"}
    assert refused.json()["error"].startswith(message)
