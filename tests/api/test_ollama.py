"""Ollama's operations: embed, tags, version."""

from typing import Any

import httpx
import numpy as np
import pytest

from tasks import PROMPTS
from tests.api.conftest import Expected
from texts.chunking import Chunking

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


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_chunks_say_where_they_are(client: httpx.Client, expected: Expected, late: bool) -> None:
    texts = ["short", "one two three four. " * 20]
    answer = embed(client, input=texts, chunk=48, overlap=8, late_chunking=late)
    wanted = expected(*texts, chunking=Chunking(48, 8, late))
    np.testing.assert_array_equal(vectors_of(answer), wanted, strict=True)
    chunks = answer.json()["chunks"]
    assert chunks[0] == [0, 0, 5] and chunks[-1][2] == len(texts[1]) and len(chunks) == len(wanted)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"input": []}, 400, "input: 0 texts were given"),
        ({"input": ""}, 400, "input: the text is empty or blank"),
        ({"input": "a", "dimensions": 3}, 400, "dimensions: 3 is unknown; use one of 768"),
        ({}, 400, "input: it is missing"),
        ({"input": "a", "overlap": 8}, 400, "overlap: it needs 'chunk'; give the tokens of a chunk"),
        (
            {"input": "a", "chunk": 64, "options": {"num_ctx": 64}},
            400,
            "options.num_ctx: chunks are not cut; leave it out, or leave 'chunk' out",
        ),
        ({"prompt": "a"}, 400, "prompt: this API has no such field; send texts in 'input'"),
        (
            {"input": "a", "options": {"num_ctx": 9}},
            400,
            "options.num_ctx: 9 leaves a text too little beside",
        ),
        ({"input": "a", "options": {"rope": 9}}, 400, "options.rope: this API has no such field; leave it out"),
        ({"input": "a", "model": "llama3"}, 404, "model: 'llama3' is not served here; use 'embeddinggemma-300m'"),
    ],
)
def test_errors_name_field_problem_and_remedy(
    client: httpx.Client, body: dict[str, Any], status: int, message: str
) -> None:
    refused = embed(client, **body)
    assert refused.status_code == status and refused.json().keys() == {"error"}
    assert refused.json()["error"].startswith(message)


def test_the_older_operation_has_one_text_and_one_vector(client: httpx.Client, expected: Expected) -> None:
    asked = {"model": "embeddinggemma-300m:retrieval_query", "prompt": "one", "options": {"temperature": 0}}
    answer = client.post("/api/embeddings", json=asked)
    np.testing.assert_array_equal(np.array([answer.json()["embedding"]], "f4"), expected("one", task="retrieval_query"))
    assert client.post("/api/embeddings", json=asked | {"prompt": LONG}).headers["x-truncated"] == "0"
    refused = client.post("/api/embeddings", json=asked | {"prompt": " "})
    assert refused.json()["error"].startswith("prompt: the text is empty or blank")


def test_the_model_is_shown_to_programs_that_ask_for_its_limit(client: httpx.Client) -> None:
    shown = client.post("/api/show", json={"model": "embeddinggemma-300m:clustering", "verbose": False}).json()
    family = shown["model_info"]["general.architecture"]
    assert shown["model_info"][f"{family}.context_length"] == 2048
    assert shown["model_info"][f"{family}.embedding_length"] == 768
    assert shown["capabilities"] == ["embedding"] and shown["details"]["family"] == family
    assert client.post("/api/show", json={"name": "embeddinggemma"}).json() == shown
    assert client.post("/api/show", json={"name": "llama3"}).status_code == 404
    assert client.post("/api/show", json={}).json()["error"].startswith("model: it is missing")


def test_the_context_that_a_client_sets_cuts_texts(client: httpx.Client, expected: Expected) -> None:
    text = " ".join(f"word{i}" for i in range(100))
    answer = embed(client, input=["short", text], options={"num_ctx": 50})
    assert answer.headers["x-truncated"] == "1"
    np.testing.assert_array_equal(vectors_of(answer), expected("short", text, max_tokens=50))
    assert not (vectors_of(answer)[1] == expected(text)[0]).all()
    uncut = embed(client, input=["short", text], options={"num_ctx": 100_000})
    assert "x-truncated" not in uncut.headers
    refused = embed(client, input=["short", text], options={"num_ctx": 50}, truncate=False)
    assert refused.status_code == 400 and "the limit is 50" in refused.json()["error"]
