"""Broken bodies to every API, and what no schema thinks of: each is refused in the API's own words."""

import gzip
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.apis import BODIES, MODEL, check

# What is wrong with a body that begins as this one does, with the text "one".
BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda body: body[:-2],
    "something behind": lambda body: body + b"}",
    "junk": lambda body: b"\x00\xff\xfe\x80",
    "nothing": lambda body: b"",
    "null": lambda body: b"null",
    "a list": lambda body: b"[" + body + b"]",
    "a string": lambda body: json.dumps(body.decode()).encode(),
    "no fields": lambda body: b"{}",
    "UTF-16": lambda body: body.decode().encode("utf-16"),
    "two byte order marks": lambda body: b"\xef\xbb\xbf" * 2 + body,
    "compressed": gzip.compress,
    "bytes that are not UTF-8": lambda body: body.replace(b"one", b"\xff\xfe"),
    "a surrogate in UTF-8": lambda body: body.replace(b"one", b"\xed\xa0\x80"),
    "a lone surrogate": lambda body: body.replace(b"one", b"\\ud800"),
    "half a pair and a letter": lambda body: body.replace(b"one", b"\\ud83dx"),
    "a number": lambda body: body.replace(b'"one"', b"1"),
    "a number that is none": lambda body: body.replace(b'"one"', b"NaN"),
    "an endless number": lambda body: body.replace(b'"one"', b"9" * 5_000),
    "an object": lambda body: body.replace(b'"one"', b"{}"),
    "null for a text": lambda body: body.replace(b'"one"', b"null"),
    "an empty text": lambda body: body.replace(b"one", b""),
    "lists in lists": lambda body: body.replace(b'"one"', b"[" * 30_000 + b"]" * 30_000),
    "an unknown field of lists": lambda body: body[:-1] + b', "x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "objects without end": lambda body: body[:-1] + b', "options": ' + b'{"a": ' * 20_000,
}
LISTS = [path for path in BODIES if not path.endswith((":embedContent", "/api/embeddings", "/vectors"))]


@pytest.mark.parametrize("problem", BROKEN)
@pytest.mark.parametrize("path", BODIES)
def test_broken_bodies(client: httpx.Client, path: str, problem: str) -> None:
    answer = client.post(path, content=BROKEN[problem](json.dumps(BODIES[path](["one"])).encode()))
    check(path, answer)
    assert answer.status_code in (400, 422), answer.text


@pytest.mark.parametrize("path", LISTS)
def test_no_texts_and_too_many(client: httpx.Client, path: str) -> None:
    for count in (0, 2_049):
        answer = client.post(path, json=BODIES[path](["one"] * count))
        check(path, answer)
        assert answer.status_code in (400, 422) and (f"{count:,}" in answer.text or "empty" in answer.text)


def test_a_field_that_is_there_twice_counts_once(client: httpx.Client) -> None:
    assert len(client.post("/embed", content=b'{"inputs": ["one", "two"], "inputs": "one"}').json()) == 1


@pytest.mark.parametrize("ids", [[2**70], [-1], [[]], [[2], "two"], [1, 2, 2**32], [True], [1.5]])
def test_ids_that_are_no_tokens(client: httpx.Client, ids: list[Any]) -> None:
    answer = client.post("/v1/embeddings", json={"input": ids, "tokenizer": MODEL})
    check("/v1/embeddings", answer)
    assert answer.status_code == 400 and "input" in answer.text


LONG = "x" * 100_000


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/v1/embeddings", {"input": "one", "encoding_format": LONG}),
        ("/v1/embeddings", {"input": "one", "task": LONG}),
        ("/v1/embeddings", {"input": "one", LONG: 1}),
        ("/v1/embeddings", {"input": "one", "model": LONG}),
        ("/embed", {"inputs": "one", "prompt_name": LONG}),
        ("/v2/embed", {"texts": ["one"], "embedding_types": [LONG]}),
    ],
)
def test_errors_are_short_whatever_they_are_about(client: httpx.Client, path: str, asked: dict[str, Any]) -> None:
    answer = client.post(path, json=asked)
    check(path, answer)
    assert answer.status_code != 200


@pytest.mark.parametrize(
    "name", ["%00", "%ff", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "a" * 5_000, "%F0%9F%98%80", "%E2%80%A8"]
)
def test_models_that_are_not_served(client: httpx.Client, name: str) -> None:
    path = f"/v1beta/models/{name}:embedContent"
    answer = client.post(path, json=BODIES[f"/v1beta/models/{MODEL}:embedContent"](["one"]))
    check(path, answer)
    assert answer.status_code == 404
