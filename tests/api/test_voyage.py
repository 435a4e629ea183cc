"""POST /v1/contextualizedembeddings: documents in chunks, whole documents that the server cuts, and queries."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.conftest import Expected
from texts.chunking import Chunking

LONG = "".join(f"In the year {year} the river rose, and nobody wrote it down.\n" for year in range(900, 1060))
TEXTS = [LONG, "\U0001f469 one two three four " * 20, "short"]


def post(client: httpx.Client, inputs: Any, **fields: Any) -> httpx.Response:
    return client.post("/v1/contextualizedembeddings", json={"inputs": inputs, **fields})


def rows_of(answer: httpx.Response, field: str = "embedding") -> list[list[Any]]:
    """Return a field of each vector, in a list for each document."""
    assert answer.status_code == 200, answer.text
    documents = answer.json()["data"]
    assert [document["index"] for document in documents] == list(range(len(documents)))
    for document in documents:
        assert [each["index"] for each in document["data"]] == list(range(len(document["data"])))
    return [[each[field] for each in document["data"]] for document in documents]


def vectors_of(answer: httpx.Response, dtype: str = "<f4") -> np.ndarray:
    """Return all vectors of an answer, one after the other."""
    return np.array([row for rows in rows_of(answer) for row in rows], dtype)


@pytest.mark.parametrize("chunk", [48, 300])
def test_chunks_that_the_server_cuts_and_those_chunks_given_back(
    client: httpx.Client, expected: Expected, chunk: int
) -> None:
    """Both have the vectors of /predictions with late chunking, also of a document longer than the model reads."""
    wanted = expected(*TEXTS, chunking=Chunking(chunk, late=True))
    cut = post(client, TEXTS, enable_auto_chunking=True, chunk_size=chunk)
    np.testing.assert_array_equal(vectors_of(cut), wanted, strict=True)
    chunks = rows_of(cut, "text")
    assert ["".join(of_document) for of_document in chunks] == TEXTS
    given = post(client, chunks, input_type="document")
    np.testing.assert_array_equal(vectors_of(given), wanted, strict=True)
    assert [len(rows) for rows in rows_of(given)] == [len(rows) for rows in chunks] and "text" not in given.text
    assert given.json()["usage"] == cut.json()["usage"] and given.json()["model"] == given.headers["x-model"]
    jina = client.post("/v1/embeddings", json={"input": chunks[0], "late_chunking": True})
    rows = [each["embedding"] for each in jina.json()["data"]]
    np.testing.assert_array_equal(np.array(rows, "<f4"), wanted[: len(chunks[0])], strict=True)


def test_the_server_cuts_to_512_tokens_or_with_overlap(client: httpx.Client, expected: Expected) -> None:
    auto = post(client, [[LONG]], enable_auto_chunking=True, input_type="document")
    np.testing.assert_array_equal(vectors_of(auto), expected(LONG, chunking=Chunking(512, late=True)), strict=True)
    auto = post(client, [LONG], enable_auto_chunking=True, chunk_size=64.0, chunk_overlap=16, output_dimension=128)
    wanted = expected(LONG, chunking=Chunking(64, 16, late=True), embedding_dim=128)
    np.testing.assert_array_equal(vectors_of(auto), wanted, strict=True)
    [texts] = rows_of(auto, "text")
    assert all(text in LONG for text in texts) and sum(map(len, texts)) > len(LONG)


def test_the_chunks_of_a_document_know_of_each_other_and_of_no_other_document(client: httpx.Client) -> None:
    alone, other, beside = (
        vectors_of(post(client, inputs))
        for inputs in ([["It rose. ", "It fell."]], [["He rose. ", "It fell."]], [["One."], ["It rose. ", "It fell."]])
    )
    assert np.abs(alone[1] - other[1]).max() > 1e-3
    np.testing.assert_array_equal(beside[1:], alone)


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({}, "retrieval_document"),
        ({"input_type": "document"}, "retrieval_document"),
        ({"input_type": "query"}, "retrieval_query"),
        ({"input_type": "query", "model": "embeddinggemma-300m:retrieval_query"}, "retrieval_query"),
        ({"model": "embeddinggemma-300m:clustering"}, "clustering"),
        ({"input_type": "none"}, "none"),
    ],
)
def test_a_text_by_itself_has_its_ordinary_vector(
    client: httpx.Client, expected: Expected, fields: dict[str, Any], task: str
) -> None:
    wanted = expected("one", "two", task=task)
    np.testing.assert_array_equal(vectors_of(post(client, [["one"], ["two"]], **fields)), wanted, strict=True)
    mixed = post(client, [["one"], ["a", " b"], ["two"]], **fields)
    if task == "retrieval_query":
        np.testing.assert_array_equal(vectors_of(post(client, ["one", "two"], **fields)), wanted, strict=True)
        assert mixed.status_code == 400
    else:
        np.testing.assert_array_equal(vectors_of(mixed)[[0, 3]], wanted, strict=True)


@pytest.mark.parametrize("precision", ["float", "int8", "uint8", "binary", "ubinary"])
def test_base64_has_the_bytes_of_every_precision(client: httpx.Client, expected: Expected, precision: str) -> None:
    wanted = expected("one", "two", precision="float32" if precision == "float" else precision)
    for encoding_format in ("base64", "float"):
        fields = {"output_dtype": precision, "encoding_format": encoding_format}
        rows = [row for rows in rows_of(post(client, [["one"], ["two"]], **fields)) for row in rows]
        if encoding_format == "base64":
            rows = [np.frombuffer(base64.b64decode(row), wanted.dtype) for row in rows]
        np.testing.assert_array_equal(np.array(rows, wanted.dtype), wanted, strict=True)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "inputs: it is missing; /docs has an example"),
        ({"inputs": "a"}, "inputs: expected array, got str"),
        ({"inputs": []}, "inputs: 0 texts were given; give 1 to 2,048"),
        ({"inputs": [["a"], []]}, "inputs[1]: it is a list of 0 texts; give a list of the document's"),
        ({"inputs": [["a"], "b"]}, "inputs[1]: it is a string; give a list of the document's chunks, or send enable_a"),
        ({"inputs": [["a"], ["b", 5]]}, "inputs[1][1]: expected str, got int"),
        ({"inputs": [["a"], ["b", " "]]}, "inputs[1][1]: the text is empty or blank"),
        ({"inputs": [["a"] * 1025] * 2}, "inputs: 2,050 texts were given; give 1 to 2,048"),
        ({"inputs": [["a", LONG]]}, "inputs[0][1]: has 2,949 tokens with its"),
        (
            {"inputs": [["a", "b"]], "input_type": "query"},
            "inputs[0]: it is a list of 2 texts; give each query as one",
        ),
        ({"inputs": [["a"]], "input_type": "passage"}, "input_type: 'passage' is unknown; use one of query, document"),
        (
            {"inputs": [["a"]], "input_type": "query", "model": "embeddinggemma-300m:clustering"},
            "input_type: 'query' contradicts model, which is",
        ),
        ({"inputs": [["a"]], "model": "voyage-context-4"}, "model: 'voyage-context-4' is not served here; use 'embedd"),
        ({"inputs": [["a"]], "output_dimension": 1024}, "output_dimension: 1024 is unknown; use one of 768"),
        ({"inputs": [["a"]], "output_dtype": "int4"}, "output_dtype: 'int4' is unknown; use one of float"),
        ({"inputs": [["a"]], "encoding_format": "hex"}, "encoding_format: Invalid enum value 'hex'"),
        ({"inputs": [["a"]], "chunk_size": 64}, "chunk_size: it needs enable_auto_chunking; send that, too"),
        ({"inputs": [["a"]], "chunk_overlap": 64}, "chunk_overlap: it needs enable_auto_chunking; send that, too"),
        ({"inputs": [["a", "b"]], "enable_auto_chunking": True}, "inputs[0]: it is a list of 2 texts; give each docum"),
        (
            {"inputs": ["a"], "enable_auto_chunking": True, "input_type": "query"},
            "enable_auto_chunking: it cuts documents, and the task is 'retrieval_query'; leave one of them out",
        ),
        ({"inputs": ["a"], "enable_auto_chunking": True, "chunk_size": 0}, "chunk_size: 0 tokens; give at least 1"),
        (
            {"inputs": ["a"], "enable_auto_chunking": True, "chunk_size": 20, "chunk_overlap": 20},
            "chunk_overlap: 20 tokens; give 0 to 19",
        ),
        (
            {"inputs": ["a"], "enable_auto_chunking": True, "chunk_size": 20, "chunk_overlap": 9},
            "chunk_size, chunk_overlap: a chunk would begin every 11 tokens",
        ),
        (
            {"inputs": ["a b " * 70_000], "enable_auto_chunking": True, "chunk_size": 16},
            "chunk_size: the texts make 8,7",
        ),
        ({"inputs": [["a"]], "truncation": True}, "truncation: this API has no such field; leave it out"),
        ({"inputs": [["task: clustering | query: a", "b"]], "input_type": "document"}, "inputs[0][0]: begins with the"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_errors_name_field_problem_and_remedy(client: httpx.Client, body: dict[str, Any], message: str) -> None:
    refused = client.post("/v1/contextualizedembeddings", json=body)
    assert refused.status_code == 400 and refused.json().keys() == {"detail"}
    assert refused.json()["detail"].startswith(message)


def test_a_chunk_that_is_too_long_has_a_remedy_that_this_api_has(client: httpx.Client) -> None:
    for inputs in ([["a", LONG]], [["a"], [LONG]]):
        assert post(client, inputs).json()["detail"].endswith(" and the limit is 2,048; send it in smaller chunks")
