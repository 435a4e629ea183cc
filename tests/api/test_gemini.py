"""embedContent and batchEmbedContents: a task, title and dimensions for each text."""

from typing import Any

import httpx
import numpy as np
import pytest

from api.gemini import TASKS
from tests.api.conftest import Expected

MODEL = "/v1beta/models/embeddinggemma-300m"
LONG = "word " * 3000


def request(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "models/embeddinggemma-300m", "content": {"parts": [{"text": text}], "role": "user"}} | fields


def batch(client: httpx.Client, *requests: dict[str, Any]) -> httpx.Response:
    return client.post(f"{MODEL}:batchEmbedContents", json={"requests": requests})


def values_of(answer: httpx.Response) -> list[np.ndarray]:
    assert answer.status_code == 200, answer.text
    return [np.array(each["values"], "f4") for each in answer.json()["embeddings"]]


def error_of(answer: httpx.Response, status: int = 400, name: str = "INVALID_ARGUMENT") -> str:
    """Return the message of an error in Google's shape."""
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (status, status, name), answer.text
    return str(error["message"])


@pytest.mark.parametrize("task_type", [None, *TASKS])
def test_one_text_in_every_task(client: httpx.Client, expected: Expected, task_type: str | None) -> None:
    fields = {} if task_type is None else {"taskType": task_type}
    answer = client.post(f"{MODEL}:embedContent", json=request("one", **fields))
    task = TASKS.get(task_type or "") or "retrieval_document"
    np.testing.assert_array_equal(np.array([answer.json()["embedding"]["values"]], "f4"), expected("one", task=task))
    assert answer.json()["usageMetadata"]["promptTokenCount"] > 3


def test_each_text_of_a_batch_has_its_own_task_title_and_dimensions(client: httpx.Client, expected: Expected) -> None:
    answer = batch(
        client,
        request("one", taskType="RETRIEVAL_QUERY"),
        request("two", taskType="RETRIEVAL_DOCUMENT", title="A title", outputDimensionality=128),
        request("three"),
        request("four", taskType="RETRIEVAL_QUERY"),
        request("five", outputDimensionality=128),
    )
    wanted = [
        expected("one", task="retrieval_query")[0],
        expected("two", titles=["A title"], embedding_dim=128)[0],
        expected("three")[0],
        expected("four", task="retrieval_query")[0],
        expected("five", embedding_dim=128)[0],
    ]
    for actual, vector in zip(values_of(answer), wanted, strict=True):
        np.testing.assert_array_equal(actual, vector, strict=True)


@pytest.mark.parametrize(
    "model",
    [
        "/v1/models/embeddinggemma-300m",
        "/v1/models/google/embeddinggemma-300m",
        "/v1beta/models/small",
        "/v1/models/embeddinggemma-300m:clustering",
    ],
)
def test_the_model_by_its_names_and_versions(client: httpx.Client, expected: Expected, model: str) -> None:
    body = {"requests": [{"content": {"parts": [{"text": "one"}]}}]}
    task = "clustering" if model.endswith("clustering") else "retrieval_document"
    [vector] = values_of(client.post(f"{model}:batchEmbedContents", json=body))
    np.testing.assert_array_equal(vector, expected("one", task=task)[0])


def test_what_was_cut_is_said_by_the_position_in_the_batch(client: httpx.Client, expected: Expected) -> None:
    queries = {"taskType": "RETRIEVAL_QUERY"}
    answer = batch(client, request("a"), request(LONG, **queries), request(LONG), request("b", **queries))
    assert answer.headers["x-truncated"] == "1-2"
    np.testing.assert_array_equal(values_of(answer)[2], expected(LONG)[0])
    refused = batch(client, request("a", **queries), request("b"), request(LONG, autoTruncate=False, **queries))
    assert error_of(refused).startswith("requests[2].content.parts[0].text: has 3,0")


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([], "requests: the list is empty"),
        ([request("a")] * 2049, "requests: 2,049 were given; give 1 to 2,048"),
        ([request("a"), request(" ")], "requests[1].content.parts[0].text: the text is empty or blank"),
        ([request("a", taskType="POETRY")], "requests[0].taskType: 'POETRY' is unknown; use one of TASK_TYPE"),
        ([request("a", outputDimensionality=100)], "requests[0].outputDimensionality: 100 is unknown; use one of 768"),
        ([request("a", title="t", taskType="CLUSTERING")], "requests[0].title: task 'clustering' has no place"),
        ([request("a"), request("b", content={"parts": []})], "requests[1].content.parts: there are 0; give one"),
        (
            [request("a", content={"parts": [{"text": "a"}] * 2})],
            "requests[0].content.parts: there are 2; give one: join texts that belong to one vector, and send others",
        ),
        (
            [request("a", content={"parts": [{"inlineData": {}}]})],
            "requests[0].content.parts[0].inlineData: only texts are",
        ),
        ([request("a", taskTypes="CLUSTERING")], "requests[0].taskTypes: this API has no such field; leave it out"),
        (
            [request("a", embedContentConfig={"system": "a"})],
            "requests[0].embedContentConfig.system: this API has no such field; leave it out",
        ),
        ([request("a", content="a")], "requests[0].content: expected object, got str"),
    ],
)
def test_errors_name_field_problem_and_remedy(
    client: httpx.Client, requests: list[dict[str, Any]], message: str
) -> None:
    assert error_of(batch(client, *requests)).startswith(message)


def test_another_model_is_not_found(client: httpx.Client) -> None:
    refused = client.post("/v1beta/models/gemini-embedding-001:embedContent", json=request("a", model="models/small"))
    assert error_of(refused, 404, "NOT_FOUND").startswith("model: 'gemini-embedding-001' is not served here")
    inner = batch(client, request("a", model="models/text-embedding-004"))
    assert error_of(inner, 404, "NOT_FOUND").startswith("model: 'text-embedding-004' is not served here")
