"""POST /v1/embeddings and GET /v1/models, with what Jina's, Voyage's and vLLM's clients send besides."""

import base64
from typing import Any

import httpx
import numpy as np
import pytest

from api.openai import _choices
from service import Service
from tasks import PROMPTS
from tests.api.conftest import Expected
from texts.chunking import Chunking

LONG = "word " * 3000


def post(client: httpx.Client, **body: Any) -> httpx.Response:
    return client.post("/v1/embeddings", json=body)


def vectors_of(answer: httpx.Response, dtype: str = "<f4") -> np.ndarray:
    """Return the vectors of an answer, in the order of their indices."""
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    assert [each["index"] for each in data] == list(range(len(data)))
    rows = [each["embedding"] for each in data]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), dtype) for row in rows])
    return np.array(rows, dtype)


def error_of(answer: httpx.Response, status: int = 400) -> str:
    """Return the message of an error in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return str(error["message"])


@pytest.mark.parametrize("encoding_format", ["float", "base64"])
def test_a_text_and_a_list_to_the_last_bit(client: httpx.Client, expected: Expected, encoding_format: str) -> None:
    one = post(client, input="one", model="embeddinggemma-300m", encoding_format=encoding_format)
    two = post(client, input=["one", "two"], model="embeddinggemma-300m", encoding_format=encoding_format, user="me")
    np.testing.assert_array_equal(vectors_of(one), expected("one"), strict=True)
    np.testing.assert_array_equal(vectors_of(two), expected("one", "two"), strict=True)


def test_the_answer_says_tokens_and_weights(client: httpx.Client, service: Service) -> None:
    answer = post(client, input=["one", "two words"])
    body = answer.json()
    prompted = [f"title: none | text: {text}" for text in ("one", "two words")]
    count = sum(len(service.engine.tokenizer.tokens(text)) for text in prompted)
    assert body["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert (body["object"], body["data"][0]["object"]) == ("list", "embedding")
    assert body["model"] == answer.headers["x-model"] == service.model
    assert "x-truncated" not in answer.headers


@pytest.mark.parametrize(
    ("fields", "task"),
    [
        ({}, "retrieval_document"),
        ({"model": "embeddinggemma-300m:clustering"}, "clustering"),
        ({"model": "google/embeddinggemma-300m:retrieval_query"}, "retrieval_query"),
        ({"model": "small:none", "late_chunking": False}, "none"),
        ({"model": "embeddinggemma-300m:latest"}, "retrieval_document"),
        ({"task": "fact_verification"}, "fact_verification"),
        ({"task": "retrieval.query"}, "retrieval_query"),
        ({"task": "text-matching"}, "semantic_similarity"),
        ({"task": "separation"}, "clustering"),
        ({"input_type": "query"}, "retrieval_query"),
        ({"input_type": "document"}, "retrieval_document"),
        ({"input_type": None, "task": None}, "retrieval_document"),
        ({"model": "embeddinggemma:retrieval_query", "input_type": "query"}, "retrieval_query"),
    ],
)
def test_the_task_by_every_way_to_say_it(
    client: httpx.Client, expected: Expected, fields: dict[str, Any], task: str
) -> None:
    np.testing.assert_array_equal(vectors_of(post(client, input="one", **fields)), expected("one", task=task))


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"dimensions": 128}, {"embedding_dim": 128}),
        ({"output_dimension": 256}, {"embedding_dim": 256}),
        ({"normalized": False, "dimensions": 512}, {"embedding_dim": 512, "normalize": False}),
        ({"output_dtype": "int8"}, {"precision": "int8"}),
        ({"output_dtype": "uint8", "encoding_format": "float"}, {"precision": "uint8"}),
        ({"embedding_type": "uint8", "output_dtype": "uint8"}, {"precision": "uint8"}),
        ({"output_dtype": "float32", "encoding_format": "base64"}, {}),
        ({"output_dtype": "binary", "dimensions": 128}, {"precision": "binary", "embedding_dim": 128}),
        ({"embedding_type": "ubinary"}, {"precision": "ubinary"}),
        ({"embedding_type": "base64"}, {}),
        ({"embedding_type": "float", "truncation": True}, {}),
    ],
)
def test_dimensions_and_precisions(
    client: httpx.Client, expected: Expected, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    wanted = expected("one", "two", **options)
    np.testing.assert_array_equal(
        vectors_of(post(client, input=["one", "two"], **fields), str(wanted.dtype)), wanted, strict=True
    )


def test_titles_go_into_the_documents_prompt(client: httpx.Client, expected: Expected) -> None:
    answer = post(client, input=["one", "two"], titles=["A title", None])
    np.testing.assert_array_equal(vectors_of(answer), expected("one", "two", titles=["A title", ""]))
    refused = post(client, input=["one"], titles=["A title"], task="clustering")
    assert "titles: task 'clustering' has no place for a title" in error_of(refused)


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({"truncate": True}, "end"),
        ({"truncate": "start"}, "start"),
        ({"truncation": True}, "end"),
        ({"truncate_prompt_tokens": -1}, "end"),
        ({"truncate_prompt_tokens": 2048}, "end"),
        ({"truncate_prompt_tokens": 9000, "truncation_side": "left"}, "start"),
        ({"truncate": True, "truncation_side": "left"}, "start"),
    ],
)
def test_a_long_text_is_cut_only_where_that_is_asked_for(
    client: httpx.Client, expected: Expected, fields: dict[str, Any], end: str
) -> None:
    texts = [LONG + "a", "short", LONG + "b", LONG + "c"]
    refused = post(client, input=texts)
    assert error_of(refused).startswith("input[0]: has 3,0") and refused.json()["error"]["param"] == "input[0]"
    answer = post(client, input=texts, **fields)
    assert answer.headers["x-truncated"] == "0,2-3"
    np.testing.assert_array_equal(vectors_of(answer), expected(*texts, truncate=end))


def test_token_ids_are_refused_unless_they_are_said_to_be_this_models(
    client: httpx.Client, service: Service, expected: Expected
) -> None:
    tokenizer = service.engine.tokenizer
    texts = ["The cat  sat.", "é 漢字"]
    ids = [[token.id for token in tokenizer.tokens(text, add_special_tokens=False)] for text in texts]
    for given in (ids, ids[0], [ids[0], "text"]):
        assert "check_embedding_ctx_length=False" in error_of(post(client, input=given))
    with_ids = post(client, input=ids, tokenizer="embeddinggemma-300m", task="clustering")
    np.testing.assert_array_equal(vectors_of(with_ids), expected(*texts, task="clustering"))
    one = post(client, input=[tokenizer.bos, *ids[0], tokenizer.eos], tokenizer="embeddinggemma-300m")
    np.testing.assert_array_equal(vectors_of(one), expected(texts[0]))
    unknown = error_of(post(client, input=[[5], [10**6]], tokenizer="embeddinggemma-300m"))
    assert unknown.startswith("input[1]: has the id 1000000, and the tokenizer has 0 to")
    split = tokenizer.tokens("t", add_special_tokens=False) + tokenizer.tokens("he", add_special_tokens=False)
    not_so = post(client, input=[token.id for token in split], tokenizer="embeddinggemma-300m")
    assert "input: is not how this tokenizer writes 'the'" in error_of(not_so)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "input: it is missing"),
        ({"input": []}, "input: 0 texts were given; give 1 to 2,048"),
        ({"input": ["a"] * 2049}, "input: 2,049 texts were given; give 1 to 2,048"),
        ({"input": ["a", " "]}, r"input[1]: the text is empty or blank"),
        ({"input": 5}, "input: expected str | array, got int"),
        ({"input": ["a", None]}, "input[1]: expected int | str | array, got null"),
        ({"input": "a", "dimensions": 100}, "dimensions: 100 is unknown; use one of 768, 512, 256, 128"),
        ({"input": "a", "dimensions": 0}, "dimensions: 0 is unknown"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format: "),
        ({"input": "a", "output_dtype": "int4"}, "output_dtype: 'int4' is unknown; use one of float"),
        ({"input": "a", "task": "poetry"}, "task: 'poetry' is unknown; use one of"),
        ({"input": "a", "task": "clustering", "input_type": "query"}, "input_type: 'query' contradicts task, which is"),
        (
            {"input": "a", "model": "small:clustering", "task": "none"},
            "task: 'none' contradicts model, which is 'sm",
        ),
        ({"input": "a", "truncate_prompt_tokens": 9}, "truncate_prompt_tokens: 9 leaves a text too little beside its"),
        ({"input": "a", "truncation_side": "left"}, "truncation_side: it needs truncate_prompt_tokens or truncate"),
        ({"input": "a", "return_multivector": True}, "return_multivector: this model has one vector for a text"),
        ({"input": "a", "tokenizer": "cl100k_base"}, "tokenizer: 'cl100k_base' is another model's; send texts, or"),
        ({"input": "a", "output_dtype": "base64"}, "output_dtype: 'base64' is unknown; use one of float, float32"),
        (
            {"input": ["a", "b"], "late_chunking": True, "truncate_prompt_tokens": 64},
            "truncate_prompt_tokens: a document's chunks are not cut; leave it out, or late_chunking",
        ),
        (
            {"input": ["a", "b"], "late_chunking": True, "titles": [None, "B"]},
            "titles: chunks of a document have no titles; leave them out, and begin the document with 'title: ... |",
        ),
        ({"input": ["a", " "], "late_chunking": True}, "input[1]: the text is empty or blank"),
        ({"input": "a", "overlap": 8}, "overlap: it needs 'chunk'; give the tokens of a chunk"),
        ({"input": "a", "chunk": 32.5}, "chunk: 32.5 is not a whole number; give one without a fraction"),
        (
            {"input": "a", "chunk": 32, "truncate_prompt_tokens": 64},
            "truncate_prompt_tokens: chunks are not cut; leave it out",
        ),
        ({"input": "a", "dimension": 128}, "dimension: this API has no such field; leave it out"),
        (
            {"messages": [], "model": "small"},
            "messages: this API has no such field; send texts in 'input'; with mteb's",
        ),
    ],
)
def test_errors_name_field_problem_and_remedy(client: httpx.Client, body: dict[str, Any], message: str) -> None:
    refused = post(client, **body)
    assert error_of(refused).startswith(message)
    assert refused.json()["error"] | {"message": ""} == {
        "message": "", "type": "invalid_request_error", "param": message.partition(":")[0], "code": None
    }  # fmt: skip


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_chunks_have_vectors_of_their_own_and_say_where_they_are(
    client: httpx.Client, expected: Expected, late: bool
) -> None:
    texts = ["short", "\U0001f469 one two three four " * 20]
    fields = {"chunk": 48, "overlap": 8, "late_chunking": late}
    answer = post(client, input=texts, **fields, truncate="start", dimensions=256)
    chunks = answer.json()["chunks"]
    assert chunks[0] == [0, 0, len("short")] and len(chunks) > 3 and chunks[-1][2] == len(texts[1])
    wanted = expected(*texts, embedding_dim=256, chunking=Chunking(48, 8, late))
    np.testing.assert_array_equal(vectors_of(answer), wanted, strict=True)
    if not late:
        cut = [texts[text][start:end] for text, start, end in chunks]
        np.testing.assert_allclose(vectors_of(answer), expected(*cut, embedding_dim=256), atol=1e-5)
    assert post(client, input=texts[0], **fields).json()["chunks"] == [[0, 0, 5]]
    assert "chunks" not in post(client, input=texts).json()


def test_late_chunking_without_a_size_makes_one_document_of_the_texts(client: httpx.Client, expected: Expected) -> None:
    """As in Jina's API; with a size the server cuts each text."""
    text = "one two three four. " * 20
    ends = [span[2] for span in post(client, input=text, chunk=48, late_chunking=True).json()["chunks"]]
    parts = [text[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    fields = {"task": "text-matching", "dimensions": 256, "late_chunking": True}
    answer = post(client, input=parts, **fields)
    wanted = expected(text, task="semantic_similarity", embedding_dim=256, chunking=Chunking(48, late=True))
    np.testing.assert_array_equal(vectors_of(answer), wanted, strict=True)
    assert "chunks" not in answer.json() and len(parts) > 2
    for given in ("one", ["one"]):
        np.testing.assert_array_equal(vectors_of(post(client, input=given, late_chunking=True)), expected("one"))
    assert error_of(post(client, input=["a", LONG], late_chunking=True)).startswith("input[1]: has 3,0")
    cut = post(client, input=["a", LONG], late_chunking=True, truncate=True)
    assert cut.headers["x-truncated"] == "1"
    np.testing.assert_array_equal(vectors_of(cut)[1:], expected(LONG), strict=True)


def test_what_is_not_json_is_refused(client: httpx.Client) -> None:
    for content in (b"", b"{", b'{"input": "\xff"}', b"[]", b'"text"'):
        refused = client.post("/v1/embeddings", content=content)
        assert error_of(refused).startswith("body: ")


@pytest.mark.parametrize("model", ["text-embedding-3-small", "embeddinggemma-300m:poetry", "", ":none", "gemma"])
def test_another_model_is_not_found(client: httpx.Client, model: str) -> None:
    refused = post(client, input="a", model=model)
    assert error_of(refused, 404).startswith(f"model: {model!r} is not served here; use 'embeddinggemma-300m', or")
    assert refused.json()["error"]["code"] == "model_not_found"


def test_the_models_are_listed_with_their_tasks(client: httpx.Client, expected: Expected) -> None:
    listed = client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [
        "embeddinggemma-300m",
        *(f"embeddinggemma-300m:{task}" for task in PROMPTS),
    ]
    assert {model["max_model_len"] for model in listed["data"]} == {2048}
    for task, model in zip(PROMPTS, listed["data"][1:], strict=True):
        assert client.get(f"/v1/models/{model['id']}").json() == model
        np.testing.assert_array_equal(
            vectors_of(post(client, input="one", model=model["id"])), expected("one", task=task)
        )
    assert client.get("/v1/models/google/embeddinggemma-300m").json()["id"] == "google/embeddinggemma-300m"
    assert client.get("/v1/models/gpt-5").status_code == 404


def test_choices_are_read_once_whatever_the_texts_and_the_user(client: httpx.Client) -> None:
    def read(**fields: Any) -> int:
        before = _choices.cache_info().misses
        assert client.post("/v1/embeddings", json={"model": "embeddinggemma", **fields}).status_code == 200
        return _choices.cache_info().misses - before

    assert read(input="a text", dimensions=256, truncate="start") == 1
    assert read(input="another", dimensions=256, truncate="start", user="somebody", titles=["a title"]) == 0
    assert read(input="a text", dimensions=256, truncate="end") == 1
