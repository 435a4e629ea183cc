"""Replicate's own client and what is built on it, and the cases that a pushed model must pass, on a real server."""

from collections.abc import Iterator
from typing import Any

import httpx
import jq
import numpy as np
import pytest
import yaml
from replicate.client import Client
from replicate.exceptions import ModelError

import encoding
from container.make_openapi import ROOT
from container.server import Server
from tests.support.replicate_api import MODEL, VERSION, running_replicate_api

TEXTS = ["The cat sat on the mat.", "Ein Satz auf Deutsch."]
CASES = yaml.safe_load((ROOT / "container" / "cog-safe-push.yaml").read_text(encoding="utf-8"))["predict"]["test_cases"]


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with running_replicate_api(server.url) as api:
        yield Client(api_token="r8_none", base_url=api.url)


def embed(server: Server, **inputs: object) -> np.ndarray:
    return encoding.decode(server.predict(inputs))


def test_replicates_client_takes_every_kind_of_answer(client: Client, server: Server) -> None:
    def run(**inputs: object) -> Any:
        return client.run(f"{MODEL}:{VERSION}", input=inputs)

    np.testing.assert_allclose(encoding.decode(run(texts=TEXTS)), embed(server, texts=TEXTS), atol=1e-6)
    assert run(file="data:text/plain,one%0Atwo").read().startswith(b"PAR1")
    assert np.shape(run(text="one", output_format="vectors")) == (768,)
    with pytest.raises(ModelError, match="text: the text is empty or blank"):
        run(text=" ")


def test_vectors_are_a_list_and_nothing_else(client: Client, server: Server) -> None:
    """As langchain-replicate asks: the model's version and its inputs, then a prediction that it waits for."""
    version = client.models.get(*MODEL.split("/")).versions.get(VERSION)
    assert "texts" in version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    prediction = client.predictions.create(
        version=version.id, input={"texts": TEXTS, "output_format": "vectors", "task": "retrieval_query"}
    )
    prediction.wait()
    assert isinstance(prediction.output, list)
    expected = embed(server, texts=TEXTS, task="retrieval_query", output_format="array")
    np.testing.assert_array_equal(np.array(prediction.output, dtype="f4"), expected)
    assert (
        prediction.metrics and prediction.metrics["model"].startswith("small@") and prediction.metrics["truncated"] == 0
    )


def test_texts_may_be_a_json_string(server: Server) -> None:
    texts = '["The cat sat on the mat.", "Ein Satz auf Deutsch."]'
    np.testing.assert_array_equal(embed(server, texts=texts), embed(server, texts=TEXTS))


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        ("one text", "texts: the string is not JSON (unexpected character"),
        (
            '{"a": 1}',
            "texts: the string is JSON, but not a list; give a list of strings, a JSON string of such a list, or",
        ),
        ('["a", null]', "texts[1]: it is null"),
        (["a", 5], "texts[1]: it is a number; give a string"),
        ("[" * 10_000, "is not JSON"),
        ("[" * 100_000, "texts: it has more than 294,912 values"),
        ("[]", "texts: 0 texts were given"),
    ],
)
def test_texts_that_are_no_list_of_strings_are_refused(server: Server, texts: object, problem: str) -> None:
    answer = server.predict({"texts": texts})
    assert answer["status"] == "failed"
    assert problem in answer["error"]


def test_vectors_do_not_say_what_a_chunk_is_of(server: Server) -> None:
    answer = server.predict({"text": "one", "chunk": 64, "output_format": "vectors"})
    assert (
        "output_format: 'vectors' does not say which text a chunk is from; with 'chunk' use 'array'" in answer["error"]
    )


@pytest.mark.parametrize("case", CASES, ids=[str(case["inputs"])[:60] for case in CASES])
def test_the_cases_that_a_pushed_model_must_pass(server: Server, case: dict[str, object]) -> None:
    """On the small checkpoint, which has another name."""
    answer = httpx.post(f"{server.url}/predictions", json={"input": case["inputs"]}, timeout=60).json()
    query = str(case.get("jq_query", ".")).replace("google/embeddinggemma-300m@", "small@")
    if "error_contains" in case:
        assert str(case["error_contains"]) in answer["error"]
    else:
        assert answer["status"] == "succeeded"
        assert jq.compile(query).input_value(answer["output"]).first()
