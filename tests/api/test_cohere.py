"""Cohere's embed, in its second version and in its first."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from api.cohere import TASKS
from tests.api.conftest import Expected
from texts.chunking import Chunking

LONG = "word " * 3000


def embed(client: httpx.Client, version: int = 2, **body: Any) -> httpx.Response:
    return client.post(f"/v{version}/embed", json={"model": "embeddinggemma-300m"} | body)


def vectors_of(answer: httpx.Response, kind: str = "float", dtype: str = "<f4") -> np.ndarray:
    assert answer.status_code == 200, answer.text
    rows = answer.json()["embeddings"][kind]
    if kind == "base64":
        return np.stack([np.frombuffer(base64.b64decode(row), dtype) for row in rows])
    return np.array(rows, dtype)


@pytest.mark.parametrize("input_type", [None, *TASKS])
def test_the_task_is_the_input_type(client: httpx.Client, expected: Expected, input_type: str | None) -> None:
    answer = embed(client, texts=["one", "two"], input_type=input_type)
    task = TASKS[input_type] if input_type else "retrieval_document"
    np.testing.assert_array_equal(vectors_of(answer), expected("one", "two", task=task), strict=True)
    body = answer.json()
    assert body["texts"] == ["one", "two"] and body["response_type"] == "embeddings_by_type" and body["id"]
    assert body["meta"]["billed_units"]["input_tokens"] >= 6 and body["meta"]["api_version"] == {"version": "2"}


@pytest.mark.parametrize("version", [1, 2])
def test_several_types_of_the_same_vectors(client: httpx.Client, expected: Expected, version: int) -> None:
    kinds = {"float": "float32", "base64": "float32"} | {kind: kind for kind in ("int8", "uint8", "binary", "ubinary")}
    answer = embed(client, version, texts=["one", "two"], embedding_types=list(kinds), output_dimension=256)
    assert answer.json()["embeddings"].keys() == kinds.keys()
    for kind, precision in kinds.items():
        wanted = expected("one", "two", embedding_dim=256, precision=precision)
        np.testing.assert_array_equal(vectors_of(answer, kind, wanted.dtype.str), wanted, strict=True)


def test_the_first_version_answers_with_a_list(client: httpx.Client, expected: Expected) -> None:
    body = embed(client, 1, texts=["one"], input_type="search_query", truncate=None).json()
    assert body["response_type"] == "embeddings_floats" and body["meta"]["api_version"] == {"version": "1"}
    np.testing.assert_array_equal(np.array(body["embeddings"], "f4"), expected("one", task="retrieval_query"))


@pytest.mark.parametrize(("truncate", "end"), [(None, "end"), ("END", "end"), ("START", "start")])
def test_a_long_text_is_cut_unless_that_is_forbidden(
    client: httpx.Client, expected: Expected, truncate: str | None, end: str
) -> None:
    fields: dict[str, Any] = {} if truncate is None else {"truncate": truncate}
    answer = embed(client, texts=["short", LONG], **fields)
    assert answer.headers["x-truncated"] == "1"
    np.testing.assert_array_equal(vectors_of(answer), expected("short", LONG, truncate=end))
    refused = embed(client, texts=["short", LONG], truncate="NONE")
    assert refused.status_code == 400 and refused.json()["message"].startswith("texts[1]: has 3,0")


@pytest.mark.parametrize(("version", "late"), [(1, False), (2, True)], ids=["first", "second, late"])
def test_chunks_say_where_they_are(client: httpx.Client, expected: Expected, version: int, late: bool) -> None:
    texts = ["short", "one two three four. " * 20]
    fields = {"chunk": 48, "overlap": 8, "late_chunking": late, "embedding_types": ["float"]}
    answer = embed(client, version, texts=texts, **fields)
    wanted = expected(*texts, chunking=Chunking(48, 8, late))
    np.testing.assert_array_equal(vectors_of(answer), wanted, strict=True)
    body = answer.json()
    assert body["texts"] == texts and len(body["chunks"]) == len(wanted)
    assert body["chunks"][0] == [0, 0, 5] and body["chunks"][-1][2] == len(texts[1])


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "texts: it is missing"),
        ({"images": ["data:image/png;base64,"]}, 400, "images: only texts are embedded here"),
        ({"texts": ["a"], "inputs": []}, 400, "texts: 'inputs' are given, too; give a list of strings there, or"),
        ({"inputs": [{"content": []}]}, 400, "inputs[0].content: it has 0 parts; give one, with the texts that"),
        ({"inputs": [{"content": [{"type": "text", "text": "a"}] * 2}]}, 400, "inputs[0].content: it has 2 parts"),
        (
            {"inputs": [{"content": [{"type": "image_url"}]}]},
            400,
            "inputs[0].content[0]: only texts are embedded",
        ),
        ({"inputs": [{"content": [{"type": "text", "text": " "}]}]}, 400, "inputs[0].content[0].text: the text is"),
        ({"texts": ["a"], "max_tokens": 9}, 400, "max_tokens: 9 leaves a text too little beside its prompt"),
        ({"texts": ["a"], "task": "clustering"}, 400, "task: this API has no such field; leave it out"),
        ({"texts": ["a"], "chunk": 64, "max_tokens": 64}, 400, "max_tokens: chunks are not cut; leave it out, or"),
        ({"texts": ["a"], "late_chunking": True}, 400, "late_chunking: it needs 'chunk'; give the tokens of a chunk"),
        ({"texts": []}, 400, "texts: 0 texts were given"),
        ({"texts": ["a", ""]}, 400, "texts[1]: the text is empty or blank"),
        ({"texts": ["a"], "input_type": "image"}, 400, "input_type: 'image' is unknown; use one of search_document"),
        ({"texts": ["a"], "embedding_types": ["float", "int4"]}, 400, "embedding_types[1]: 'int4' is unknown"),
        ({"texts": ["a"], "output_dimension": 1536}, 400, "output_dimension: 1536 is unknown; use one of 768"),
        ({"texts": ["a"], "truncate": "MIDDLE"}, 400, "truncate: 'middle' is unknown; use one of end, start, none"),
        ({"texts": ["a"], "model": "embed-v4.0"}, 404, "model: 'embed-v4.0' is not served here"),
    ],
)
def test_errors_name_field_problem_and_remedy(
    client: httpx.Client, body: dict[str, Any], status: int, message: str
) -> None:
    for version in (1, 2):
        refused = embed(client, version, **body)
        assert refused.status_code == status and refused.json().keys() == {"message"}
        assert refused.json()["message"].startswith(message)
