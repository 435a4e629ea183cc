"""What a client of the HTTP API sees: every format and precision, every refusal, and that one harms no other."""

import concurrent.futures
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

import encoding
from container.server import Server
from settings.version import NAMED

TEXTS = ["The cat sat on the mat.", "Ein Satz auf Deutsch.", "混合された言語 🙂"]


def embed(server: Server, **inputs: Any) -> np.ndarray:
    answer = server.predict(inputs)
    assert answer["status"] == "succeeded", answer["error"]
    return encoding.decode(answer)


@pytest.fixture(scope="module")
def vectors(server: Server) -> np.ndarray:
    return embed(server, texts=TEXTS)


def test_a_prediction_carries_the_contract(server: Server, vectors: np.ndarray) -> None:
    answer = server.predict({"texts": TEXTS, "embedding_dim": 256})
    output = answer["output"]
    assert output["shape"] == [3, 256]
    assert output["truncated"] == []
    assert len(output["token_counts"]) == 3
    assert output["model"].startswith("small@sha256:")
    expected = encoding.cut(vectors, 256, normalize=True)
    np.testing.assert_allclose(encoding.decode(answer), expected, atol=1e-6)


@pytest.mark.parametrize("output_format", ["base64", "array"])
@pytest.mark.parametrize("precision", encoding.WIRE_DTYPES)
def test_every_precision_decodes_to_the_same_vectors(
    server: Server, vectors: np.ndarray, precision: str, output_format: str
) -> None:
    answer = server.predict({"texts": TEXTS, "precision": precision, "output_format": output_format})
    array = encoding.decode(answer)
    assert list(array.shape) == answer["output"]["shape"] == [3, 96 if "binary" in precision else 768]
    back = encoding.dequantize(array, precision)
    if "binary" in precision:
        np.testing.assert_array_equal(back > 0, vectors > 0)
        return
    unit = back / np.linalg.norm(back, axis=1, keepdims=True)
    # Half a step of the format at the vector's largest component.
    step = {"float32": 1e-6, "float16": 2**-11}.get(precision, 1 / 127)
    assert np.abs(unit - vectors).max() <= step * np.abs(vectors).max()


def test_one_text_equals_its_row_among_many(server: Server, vectors: np.ndarray) -> None:
    for text, row in zip(TEXTS, vectors, strict=True):
        np.testing.assert_allclose(embed(server, text=text), row, atol=1e-6)


def test_without_normalisation_the_direction_is_the_same(server: Server, vectors: np.ndarray) -> None:
    raw = embed(server, texts=TEXTS, normalize=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.01
    np.testing.assert_allclose(encoding.cut(raw, 768, normalize=True), vectors, atol=1e-6)


def test_a_cut_is_in_the_answer_and_its_log(server: Server) -> None:
    answer = server.predict({"texts": ["short", "word " * 5000], "truncate": "start"})
    assert answer["output"]["truncated"] == [1]
    assert answer["output"]["token_counts"][1] == 2048
    cut = "WARNING predict: cut at the start to 2048 tokens: texts[1]"
    assert answer["logs"].splitlines() == [f"INFO predict: {NAMED}", cut]


def test_every_whole_number_may_be_written_as_a_float(server: Server) -> None:
    schema = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    fields = schema["Input"]["properties"]
    integers = [name for name in fields if "integer" in (fields[name].get("type"), schema.get(name, {}).get("type"))]
    assert sorted(integers) == ["chunk", "embedding_dim", "overlap"]
    for name in integers:
        inputs = {"text": "word " * 100, "chunk": 32} | {name: {"embedding_dim": 256.0}.get(name, 16.0)}
        answer = server.predict(inputs)
        assert answer["status"] == "succeeded", answer["error"]


def test_inputs_that_do_not_exist_are_refused_and_the_nearest_is_named(server: Server) -> None:
    """Cog's server would drop them (tests/server/test_coglet.py)."""
    answer = httpx.post(f"{server.url}/predictions", json={"input": {"text": "a", "tsk": "clustering"}})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["msg"] == "'tsk' is no input; did you mean 'task'?"


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"text": "a", "texts": ["b"]}, "text, texts: both were given"),
        ({"texts": ["a", "  "]}, "texts[1]: the text is empty or blank"),
        ({"text": "a", "on_error": "skip"}, "on_error: it needs 'file'; leave it out"),
        ({"texts": ["a"] * 2049}, "texts: 2,049 texts were given; give 1 to 2,048"),
        ({"text": "a", "title": "b", "task": "none"}, "title: task 'none' has no place for a title"),
        ({"text": "word " * 3000, "truncate": "none"}, "tokens with its prompt and the limit is 2,048"),
    ],
)
def test_bad_input_fails_only_its_own_prediction(
    server: Server, vectors: np.ndarray, inputs: dict[str, Any], problem: str
) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        good = [pool.submit(embed, server, texts=TEXTS) for _ in range(8)]
        bad = pool.submit(server.predict, inputs)
    assert bad.result()["status"] == "failed"
    assert problem in bad.result()["error"]
    assert "Traceback" not in bad.result()["error"]
    for one in good:
        np.testing.assert_allclose(one.result(), vectors, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ({"texts": 5}, "texts"),
        ({"texts": ["a"], "titles": ["b", 5]}, "titles/1"),
        ({"text": 5}, "text"),
        ({"text": "a", "task": "search"}, "task"),
        ({"text": "a", "embedding_dim": 100}, "embedding_dim"),
        ({"text": "a", "normalize": "yes"}, "normalize"),
        ({"text": "a", "precision": "int4"}, "precision"),
        ({"text": "a", "truncate": "middle"}, "truncate"),
    ],
)
def test_wrong_types_and_choices_are_refused_by_the_schema(
    server: Server, inputs: dict[str, Any], problem: str
) -> None:
    answer = httpx.post(f"{server.url}/predictions", json={"input": inputs})
    assert answer.status_code == 422
    assert problem in answer.text


def test_a_lone_surrogate_is_refused(server: Server) -> None:
    body = b'{"input": {"text": "half of a pair: \\ud83d."}}'
    answer = httpx.post(f"{server.url}/predictions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "body: it is not JSON (half of a surrogate pair); send a JSON object in UTF-8"


def test_fifty_million_characters_are_answered(server: Server, vectors: np.ndarray) -> None:
    answer = server.predict({"text": "word " * 10_000_000})
    assert answer["output"]["token_counts"] == [2048]
    np.testing.assert_allclose(embed(server, texts=TEXTS), vectors, atol=1e-6)


@pytest.mark.fuzz
def test_sixty_four_clients_are_each_given_their_own_and_none_is_turned_away(server: Server) -> None:
    """Each sends its next request before the server has let go of the last, so 64 slots would be too few."""
    texts = [f"Request number {i} is about {i * i}." for i in range(256)]
    expected = embed(server, texts=texts)
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda text: embed(server, text=text), texts))
    np.testing.assert_allclose(np.array(answers), expected, atol=1e-6)


def test_the_server_has_one_thread_so_that_two_never_try_for_a_slot_at_once(server: Server) -> None:
    [cog] = psutil.Process(server.process.pid).children()
    environment = Path(f"/proc/{cog.pid}/environ").read_bytes().split(b"\0")
    assert b"TOKIO_WORKER_THREADS=1" in environment


def test_metrics_say_what_a_prediction_took(server: Server) -> None:
    inputs = {"texts": ["Metrics of two texts,", "of which one is new."]}
    metrics = server.predict(inputs)["metrics"]
    assert metrics["batch_size"] == 2 and metrics["cache_hits"] == 0
    assert metrics["compute_ms"] > 0 and metrics["queue_ms"] >= 0
    again = server.predict({"texts": inputs["texts"], "embedding_dim": 128, "precision": "int8"})
    assert again["metrics"]["token_count"] == metrics["token_count"] == sum(again["output"]["token_counts"])
    assert (again["metrics"]["cache_hits"], again["metrics"]["batch_size"]) == (2, 0)


def test_the_schema_is_served(server: Server) -> None:
    schema = httpx.get(f"{server.url}/openapi.json").json()
    answer = schema["components"]["schemas"]["Output"]["anyOf"][0]
    assert answer["properties"]["embedding"]["anyOf"]
