"""TEI's operations: embed, similarity, tokenize, info."""

from typing import Any

import httpx
import numpy as np
import pytest

from api.tei import TASKS
from service import Service
from settings.version import VERSION
from tests.api.conftest import Expected

LONG = "word " * 3000


def vectors_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    return np.array(answer.json(), "f4")


def error_of(answer: httpx.Response, status: int = 422, kind: str = "Validation") -> str:
    """Return the message of an error in TEI's shape."""
    assert (answer.status_code, answer.json()["error_type"]) == (status, kind), answer.text
    return str(answer.json()["error"])


@pytest.mark.parametrize("path", ["/", "/embed"])
def test_a_text_and_a_list_to_the_last_bit(client: httpx.Client, expected: Expected, path: str) -> None:
    one, two = (client.post(path, json={"inputs": inputs}) for inputs in ("one", ["one", "two"]))
    np.testing.assert_array_equal(vectors_of(one), expected("one"), strict=True)
    np.testing.assert_array_equal(vectors_of(two), expected("one", "two"), strict=True)
    assert int(two.headers["x-compute-tokens"]) > int(one.headers["x-compute-tokens"]) > 3


@pytest.mark.parametrize("name", TASKS)
def test_the_task_by_prompt_name_in_the_body_or_the_url(client: httpx.Client, expected: Expected, name: str) -> None:
    wanted = expected("one", task=TASKS[name])
    in_body = client.post("/embed", json={"inputs": "one", "prompt_name": name})
    in_url = client.post("/embed", params={"prompt_name": name}, json={"inputs": "one"})
    np.testing.assert_array_equal(vectors_of(in_body), wanted)
    np.testing.assert_array_equal(vectors_of(in_url), wanted)


def test_dimensions_and_lengths(client: httpx.Client, expected: Expected) -> None:
    body = {"inputs": ["one"], "dimensions": 256, "normalize": False}
    wanted = expected("one", embedding_dim=256, normalize=False)
    np.testing.assert_array_equal(vectors_of(client.post("/embed", json=body)), wanted, strict=True)


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "end"),
        ({"truncate": None}, "end"),
        ({"truncate": True}, "end"),
        ({"truncation_direction": "left"}, "start"),
        ({"truncate": True, "truncation_direction": "left"}, "start"),
        ({"truncate": True, "truncation_direction": "Right"}, "end"),
        ({"truncate": "start"}, "start"),
    ],
)
def test_a_long_text_is_cut_unless_that_is_forbidden(
    client: httpx.Client, expected: Expected, fields: dict[str, Any], end: str
) -> None:
    texts = ["short", LONG]
    refused = client.post("/embed", json={"inputs": texts, "truncate": False, "truncation_direction": "left"})
    assert error_of(refused, 413).startswith("inputs[1]: has 3,0")
    answer = client.post("/embed", json={"inputs": texts} | fields)
    assert answer.headers["x-truncated"] == "1"
    np.testing.assert_array_equal(vectors_of(answer), expected(*texts, truncate=end))


@pytest.mark.parametrize("path", ["/", "/similarity"])
def test_similarity_is_the_cosine(client: httpx.Client, expected: Expected, path: str) -> None:
    inputs = {"source_sentence": "a cat", "sentences": ["a kitten", "a car", "a cat"]}
    plain = client.post(path, json={"inputs": inputs})
    source, *others = expected("a cat", "a kitten", "a car", "a cat", task="semantic_similarity")
    np.testing.assert_allclose(vectors_of(plain), np.array(others) @ source, atol=1e-6)
    queries = client.post(path, json={"inputs": inputs, "parameters": {"prompt_name": "query"}})
    source, *others = expected("a cat", "a kitten", "a car", "a cat", task="retrieval_query")
    np.testing.assert_allclose(vectors_of(queries), np.array(others) @ source, atol=1e-6)
    cut = {"inputs": inputs | {"sentences": ["a", LONG]}, "parameters": {"truncate": True}}
    assert client.post(path, json=cut).headers["x-truncated"] == "2"


def test_tokenize_gives_the_tokens_and_their_characters(client: httpx.Client, service: Service) -> None:
    texts = ["The cat  sat.", "é 漢字"]
    answer = client.post("/tokenize", json={"inputs": texts}).json()
    for text, tokens in zip(texts, answer, strict=True):
        ids = service.engine.tokenizer.encode([""], [text])[0].ids.tolist()
        assert [token["id"] for token in tokens] == ids
        assert [token["special"] for token in tokens] == [True, *[False] * (len(ids) - 2), True]
        assert all(token["start"] is token["stop"] is None for token in (tokens[0], tokens[-1]))
        assert all(text[token["start"] : token["stop"]] == token["text"] for token in tokens[1:-1])
    [bare] = client.post("/tokenize", json={"inputs": texts[0], "add_special_tokens": False}).json()
    assert bare == answer[0][1:-1]
    [prompted] = client.post("/tokenize", json={"inputs": texts[0], "prompt_name": "query"}).json()
    prompt = "task: search result | query: "
    ids = service.engine.tokenizer.encode([prompt], [texts[0]])[0].ids.tolist()
    assert [token["id"] for token in prompted] == ids


def test_info_says_what_is_served(client: httpx.Client, service: Service) -> None:
    info = client.get("/info").json()
    assert f"{info['model_id']}@{info['model_sha']}" == service.model
    assert info["auto_truncate"] is True and info["version"] >= "1.9"  # which is since when TEI cuts by itself
    assert info["docker_label"] == f"embeddinggemma-cog-{VERSION}"
    assert (info["max_input_length"], info["max_client_batch_size"], info["model_dtype"]) == (2048, 2048, "float32")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/embed", {}, "inputs: it is missing"),
        ("/embed", {"inputs": []}, "inputs: 0 texts were given"),
        ("/embed", {"inputs": ["a", ""]}, "inputs[1]: the text is empty or blank"),
        ("/embed", {"inputs": [[1, 2]]}, "inputs[0]: expected str, got array"),
        ("/embed", {"inputs": "a", "prompt_name": "poetry"}, "prompt_name: 'poetry' is unknown; use one of query,"),
        ("/embed", {"inputs": "a", "dimensions": 100}, "dimensions: 100 is unknown"),
        ("/embed", {"inputs": "a", "truncate": "middle"}, "truncate: 'middle' is unknown; use one of end, start, none"),
        ("/embed", {"inputs": "a", "prompt_nme": "query"}, "prompt_nme: this API has no such field; leave it out"),
        ("/embed", {"inputs": "a", "parameters": {"x": 1}}, "parameters.x: this API has no such field; leave it out"),
        ("/embed?dimensions=100", {"inputs": "a"}, "URL.dimensions: 100 is unknown; use one of 768"),
        ("/embed?dimensions=many", {"inputs": "a"}, "dimensions: expected int | float | null, got str"),
        ("/embed?dimension=256", {"inputs": "a"}, "dimension: this API has no such field; leave it out"),
        (
            "/embed?prompt_name=query",
            {"inputs": "a", "prompt_name": "STS"},
            "URL.prompt_name: 'query' contradicts prompt_",
        ),
        ("/embed?truncate=true&truncate=false", {"inputs": "a"}, "URL: it has a field more than once; give each once"),
        (
            "/embed",
            {"inputs": "a", "truncate": "end", "truncation_direction": "left"},
            "truncation_direction: 'left' contradicts truncate, which is 'end'; give one of the two",
        ),
        ("/tokenize?normalize=true", {"inputs": "a"}, "normalize: this API has no such field; leave it out"),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": []}}, "inputs.sentences: 0 texts were given"),
        ("/similarity", {"inputs": {"source_sentence": "", "sentences": ["a"]}}, "inputs.source_sentence: the text is"),
        ("/tokenize", {"inputs": ["a", " "]}, "inputs[1]: the text is empty or blank"),
    ],
)
def test_errors_name_field_problem_and_remedy(
    client: httpx.Client, path: str, body: dict[str, Any], message: str
) -> None:
    assert error_of(client.post(path, json=body)).startswith(message)
