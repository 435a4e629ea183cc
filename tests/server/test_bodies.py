"""Thousands of bodies by the served schema, and broken ones: each is answered in words, and the server lives on."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis_jsonschema import from_schema

from container.make_openapi import OPENAPI
from container.server import Server

pytestmark = pytest.mark.fuzz
SCHEMAS = json.loads(OPENAPI.read_text(encoding="utf-8"))["components"]["schemas"]
PROPERTIES = {
    name: {"enum": SCHEMAS[one["allOf"][0]["$ref"].rsplit("/", 1)[1]]["enum"]} if "allOf" in one else one
    for name, one in SCHEMAS["Input"]["properties"].items()
}
# Files that are there at once; tests/server/test_files.py has the others.
PROPERTIES["file"] = {"enum": ["data:text/plain,one%0Atwo", "data:text/plain,one%0A%0A", "data:,one"]}
FIELDS = ("text", "title", "precision", *PROPERTIES)
# The same examples in every run: a failure here is a failure everywhere.
THOROUGH = settings(max_examples=600, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
right = st.fixed_dictionaries({}, optional={name: from_schema(schema) for name, schema in PROPERTIES.items()})
wrong = st.fixed_dictionaries(
    {},
    optional={name: from_schema(schema) | anything for name, schema in PROPERTIES.items()} | {"unknown": anything},
)


@pytest.fixture(scope="module")
def session(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client
        answer = client.post("/predictions", json={"input": {"text": "Are you well?"}}).json()
        assert answer["status"] == "succeeded"
        assert client.get("/health-check").json()["status"] == "READY"


def check(answer: httpx.Response) -> None:
    """Hold an answer to what any answer must be."""
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text and '.py"' not in answer.text, answer.text
    body = json.loads(answer.text)
    if answer.status_code == 200:
        assert body["status"] in ("succeeded", "failed")
        if body["status"] == "failed":
            assert any(field in body["error"] for field in FIELDS), body["error"]


@THOROUGH
@given(inputs=right)
def test_what_the_schema_allows_is_answered(session: httpx.Client, inputs: dict[str, Any]) -> None:
    answer = session.post("/predictions", json={"input": inputs})
    assert answer.status_code == 200, answer.text
    check(answer)


@THOROUGH
@given(inputs=wrong)
def test_what_the_schema_forbids_is_refused(session: httpx.Client, inputs: dict[str, Any]) -> None:
    check(session.post("/predictions", json={"input": inputs}))


@THOROUGH
@given(body=anything | st.fixed_dictionaries({"input": anything}), cut=st.integers(0, 30), junk=st.binary(max_size=4))
def test_other_bodies_are_refused(session: httpx.Client, body: Any, cut: int, junk: bytes) -> None:
    content = json.dumps(body).encode()
    content = content[: max(0, len(content) - cut)] + junk if cut % 3 else content
    answer = session.post("/predictions", content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
