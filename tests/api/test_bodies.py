"""Bodies that are compressed, or begin with a byte order mark, and what looks whether the server is there."""

import gzip
import json
import tracemalloc
import zlib

import httpx
import pytest

from api.app import OPERATIONS
from api.bodies import decoded
from api.refusal import Refusal
from tests.support.apis import BODIES, check

EMPTY = gzip.compress(b"{}")
MARK = b"\xef\xbb\xbf"


@pytest.mark.parametrize("path", BODIES)
def test_a_compressed_body_or_one_with_a_mark_is_that_body(client: httpx.Client, path: str) -> None:
    plain = json.dumps(BODIES[path](["one", "two"])).encode()

    def numbers(content: bytes, coding: str | None = None) -> str:
        answer = client.post(path, content=content, headers={"content-encoding": coding} if coding else {})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        if isinstance(body, dict):
            [body] = [body[name] for name in ("embeddings", "embedding", "data", "vector") if name in body]
        return str(body)

    wanted = numbers(plain)
    assert wanted == numbers(MARK + plain) == numbers(plain, "identity")
    assert wanted == numbers(gzip.compress(plain), "gzip") == numbers(gzip.compress(MARK + plain), "X-GZIP")
    assert wanted == numbers(zlib.compress(plain), "deflate")


@pytest.mark.parametrize(
    ("coding", "content", "status", "message"),
    [
        ("br", b"{}", 415, "body: Content-Encoding 'br' is unknown here; send gzip, deflate or none"),
        ("gzip, gzip", b"{}", 415, "body: Content-Encoding 'gzip, gzip' is unknown here"),
        ("gzip", b"{}", 400, "body: it is not gzip, as its Content-Encoding says"),
        ("deflate", EMPTY, 400, "body: it is not deflate, as its Content-Encoding says"),
        ("gzip", EMPTY[:-1], 400, "body: its gzip ends too early; send one whole stream"),
        ("gzip", b"", 400, "body: its gzip ends too early"),
        ("gzip", EMPTY * 2, 400, "body: its gzip goes on after its end; send one whole stream"),
        (
            "gzip",
            gzip.compress(bytes(40 << 20)),
            413,
            "body: decompressed it is larger than 33,554,432 bytes; send fewer",
        ),
        ("", EMPTY, 400, "body: it is compressed; say so in the header Content-Encoding: gzip"),
        ("", MARK * 2 + b"{}", 400, "body: it is not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_decompressed_is_refused(
    client: httpx.Client, coding: str, content: bytes, status: int, message: str
) -> None:
    answer = client.post("/v1/embeddings", content=content, headers={"content-encoding": coding})
    check("/v1/embeddings", answer)
    assert answer.status_code == status and answer.json()["error"]["message"].startswith(message)


def test_no_more_than_the_limit_is_ever_decompressed() -> None:
    bomb = gzip.compress(bytes(50 << 20))
    tracemalloc.start()
    with pytest.raises(Refusal, match="larger than 100,000 bytes"):
        decoded(bomb, "gzip", 100_000)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert decoded(gzip.compress(bytes(100_000)), "gzip", 100_000) == bytes(100_000)


def test_every_path_that_answers_get_answers_head(client: httpx.Client) -> None:
    for path in [each.path for each in OPERATIONS if each.method == "GET"] + ["/docs", "/openapi.json"]:
        path = path.replace("{model:path}", "embeddinggemma-300m")
        got, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"") and got.status_code == 200, path
        assert head.headers["content-type"] == got.headers["content-type"]
    assert client.get("/").text == "Ollama is running"
