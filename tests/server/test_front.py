"""What docs/api.md offers is answered through the front as it is past it, by Cog's server itself."""

import json
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from container.make_openapi import OPENAPI
from container.server import Server

SCHEMAS = json.loads(OPENAPI.read_text(encoding="utf-8"))["components"]["schemas"]
# One example of each input, and of each choice that it has; those of a file go with one.
FILE = {"file": "data:text/plain,one%0Atwo"}
OF_FILES = ("file_format", "output_file", "on_error")
COMPANY: dict[str, dict[str, Any]] = {
    "text": {},
    "texts": {},
    "file": {},
    "title": {"text": "a"},
    "titles": {"texts": ["a", "b"]},
    "overlap": {"text": "a", "chunk": 32},
    "late_chunking": {"text": "a", "chunk": 32},
    **{name: {"file": 'data:application/jsonl,{"text": "one"}', "file_format": "jsonl"} for name in ("text_column",)},
    "title_column": {"file": 'data:,{"text": "one", "t": "two"}', "file_format": "jsonl"},
    "id_column": {"file": 'data:,{"text": "one", "t": "two"}', "file_format": "jsonl"},
    "file_format": {"file": "data:,one"},
    "output_file": FILE,
    "on_error": FILE,
}
VALUES: dict[str, list[Any]] = {
    "text": ["one", 'ein \U0001f642 \x00 \\ " \u2028 text', "task: search result | query: what?"],
    "texts": [["one", "two"], '["one", "two"]', ["same", "same"]],
    "file": [FILE["file"], "DATA:text/plain;base64,b25l"],
    "title": ["of a book"],
    "titles": [["one", ""]],
    "normalize": [True, False],
    "chunk": [32, 32.0],
    "overlap": [0, 16, 16.0],
    "late_chunking": [True, False],
    "text_column": ["text"],
    "title_column": ["t"],
    "id_column": ["t"],
}


def values(name: str) -> list[Any]:
    described = SCHEMAS["Input"]["properties"][name]
    return SCHEMAS[described["allOf"][0]["$ref"].rsplit("/", 1)[1]]["enum"] if "allOf" in described else VALUES[name]


INPUTS = [
    {**COMPANY.get(name, {"text": "one"}), name: value}
    for name in SCHEMAS["Input"]["properties"]
    for value in values(name)
]
# What Cog's server or the predictor refuses in its own words.
WRONG: list[dict[str, Any]] = [{}, {"text": " "}, {"text": 5}, {"text": None}, {"texts": ["a", 5]}, {"task": "search"}]
WRONG += [
    {"text": "a", "embedding_dim": 100},
    {"texts": "a"},
    {"text": "a", "texts": ["b"]},
    {"file": 5},
    {"file": None},
]

BESIDE: list[Any] = [{}, {"input": None}, {"input": {"text": "a"}, "id": None, "webhook": None}, {"context": 5}]
BESIDE += [{"context": {"a": "b"}, "input": {}}, {"input": {"text": "a"}, "webhook_events_filter": ["start"]}]
BESIDE += [{"webhook_events_filter": "start"}]


@pytest.fixture(scope="module")
def past(server: Server) -> str:
    """The URL of Cog's server itself."""
    [cog] = psutil.Process(server.process.pid).children()
    [listens] = [each.laddr for each in cog.net_connections() if each.status == psutil.CONN_LISTEN]
    return f"http://{listens.ip}:{listens.port}"


def without_times(answer: httpx.Response) -> tuple[int, Any]:
    """Return what two answers to the same must have in common."""
    body = answer.json()
    for name in ("id", "metrics"):
        body.pop(name, None)
    if isinstance(body.get("output"), dict):
        body["output"].pop("processing_time_ms")
    return answer.status_code, body


@pytest.mark.parametrize("inputs", [*INPUTS, *WRONG], ids=lambda inputs: json.dumps(inputs)[:80])
def test_an_input_is_answered_as_it_is_past_the_front(server: Server, past: str, inputs: dict[str, Any]) -> None:
    answers = [httpx.post(f"{url}/predictions", json={"input": inputs}, timeout=60) for url in (past, server.url)]
    (expected, found) = map(without_times, answers)
    if "output" in expected[1] and isinstance(expected[1]["output"], list):
        np.testing.assert_allclose(found[1].pop("output"), expected[1].pop("output"), atol=1e-6)
    assert found == expected
    assert answers[0].headers["content-type"] == answers[1].headers["content-type"]


@pytest.mark.parametrize(
    "body",
    BESIDE,
    ids=json.dumps,
)
def test_what_is_beside_the_input_is_answered_as_it_is_past_the_front(server: Server, past: str, body: Any) -> None:
    answers = [httpx.post(f"{url}/predictions", json=body, timeout=60) for url in (past, server.url)]
    assert answers[0].status_code == answers[1].status_code
    if answers[0].status_code == 200:
        assert without_times(answers[0]) == without_times(answers[1])


@pytest.mark.parametrize("path", ["/", "/openapi.json", "/health-check"])
def test_what_is_read_is_the_same(server: Server, past: str, path: str) -> None:
    expected, found = (httpx.get(url + path) for url in (past, server.url))
    assert (found.status_code, found.json()) == (expected.status_code, expected.json())


def test_predictions_by_their_ids_are_answered_and_cancelled(server: Server) -> None:
    asked = {"id": "by-id", "input": {"text": "one"}}
    assert httpx.put(f"{server.url}/predictions/by-id", json=asked).json()["id"] == "by-id"
    accepted = httpx.post(f"{server.url}/predictions", json=asked, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202 and accepted.json() == {"id": "by-id", "status": "starting"}
    assert httpx.post(f"{server.url}/predictions/unknown/cancel").status_code == 404
    assert httpx.post(f"{server.url}/predictions").json()["status"] == "failed"
