"""The OpenAPI document: every operation is in it, and the answers are what it says."""

from collections.abc import Callable
from typing import Any

import httpx
import jsonschema
import pytest

from api.app import OPERATIONS

TEXT = {"content": {"parts": [{"text": "one"}]}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": ["one", "two"]},
    "/": {"inputs": ["one"]},
    "/embed": {"inputs": "one"},
    "/similarity": {"inputs": {"source_sentence": "one", "sentences": ["two"]}},
    "/tokenize": {"inputs": "one"},
    "/v1/models/{model}:embedContent": TEXT,
    "/v1beta/models/{model}:embedContent": TEXT,
    "/v1/models/{model}:batchEmbedContents": {"requests": [TEXT]},
    "/v1beta/models/{model}:batchEmbedContents": {"requests": [TEXT]},
    "/api/embed": {"model": "embeddinggemma", "input": "one"},
    "/api/embeddings": {"model": "embeddinggemma", "prompt": "one"},
    "/api/show": {"model": "embeddinggemma"},
    "/v1/embed": {"texts": ["one"]},
    "/v2/embed": {"texts": ["one"], "embedding_types": ["float", "base64", "int8"]},
    "/v1/contextualizedembeddings": {"inputs": [["one", " two"], ["three"]]},
    "/weaviate/vectors": {"text": "one", "config": {"task_type": "query"}},
    "/weaviate/passage/vectors": {"text": "one"},
    "/weaviate/query/vectors": {"text": "one"},
}


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/openapi.json").json())


def test_every_operation_is_described(document: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(each.method, each.path.replace(":path}", "}")) for each in OPERATIONS}
    assert {path for method, path in described if method == "POST"} == BODIES.keys()
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)


def test_fields_in_the_url_are_described(document: dict[str, Any]) -> None:
    described = {
        path: methods["post"].get("parameters", []) for path, methods in document["paths"].items() if path in BODIES
    }
    in_url = {path: {each["name"] for each in fields if each["in"] == "query"} for path, fields in described.items()}
    parameters = {"prompt_name", "dimensions", "normalize", "truncate", "truncation_direction", "encoding_format"}
    assert {path: names for path, names in in_url.items() if names} == {
        **dict.fromkeys(("/", "/embed", "/similarity"), parameters),
        "/tokenize": {"prompt_name", "add_special_tokens"},
    }


@pytest.mark.parametrize("path", BODIES)
def test_bodies_and_answers_are_as_described(client: httpx.Client, document: dict[str, Any], path: str) -> None:
    def check(instance: object, described: dict[str, Any]) -> None:
        schema = described["content"]["application/json"]["schema"] | {"components": document["components"]}
        jsonschema.validate(instance, schema)

    operation = document["paths"][path]["post"]
    check(BODIES[path], operation["requestBody"])
    answer = client.post(path.replace("{model}", "embeddinggemma-300m"), json=BODIES[path])
    assert answer.status_code == 200, answer.text
    check(answer.json(), operation["responses"]["200"])
    with pytest.raises(jsonschema.ValidationError):
        check({"answer": 1}, operation["responses"]["200"])


def test_the_page_shows_the_document(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html") and 'url: "openapi.json"' in page.text


@pytest.mark.parametrize(
    ("method", "path", "status", "message_of"),
    [
        ("POST", "/v1/completions", 404, lambda body: body["error"]["message"]),
        ("GET", "/v1/embeddings", 405, lambda body: body["error"]["message"]),
        ("PUT", "/", 405, lambda body: body["error"]["message"]),
        ("POST", "/v1/models/embeddinggemma-300m:countTokens", 405, lambda body: body["error"]["message"]),
        ("POST", "/v1beta/models/embeddinggemma-300m:generateContent", 404, lambda body: body["error"]["message"]),
        ("POST", "/api/chat", 404, lambda body: body["error"]),
        ("POST", "/v2/rerank", 404, lambda body: body["message"]),
        ("GET", "/v1/contextualizedembeddings", 405, lambda body: body["detail"]),
        ("GET", "/weaviate/vectors", 405, lambda body: body["error"]),
    ],
)
def test_a_path_or_method_that_is_not_there_is_refused_in_its_apis_words(
    client: httpx.Client, method: str, path: str, status: int, message_of: Callable[[Any], str]
) -> None:
    refused = client.request(method, path)
    assert refused.status_code == status
    assert message_of(refused.json()).startswith(f"{method} {path}: there is no such operation; /docs lists all")
