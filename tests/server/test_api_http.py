"""What is almost HTTP, or too much of it: each is refused, or answered as the one request that it is."""

import http.client
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.support.apis import MODEL, Running, message, running_apis
from tests.support.sockets import CHUNKED, HEAD, SILENCE_S, asking, chunk, exchange, read, statuses

BODY = b'{"input": "one"}'
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
LAST = b"0\r\n\r\n"
# What a proxy in front of the server may take for a part of another request.
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
MB = 1_000_000

INVALID = {
    "length and chunks": HEAD + b"Content-Length: 6\r\n" + CHUNKED + b"\r\n" + LAST + SMUGGLED,
    "chunks and length": HEAD + CHUNKED + b"Content-Length: 4\r\n\r\n" + chunk(SMUGGLED) + LAST,
    "two lengths": HEAD + LENGTH + b"Content-Length: 2\r\n\r\n" + BODY,
    "one length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY,
    "two codings": HEAD + CHUNKED + b"Transfer-Encoding: x\r\n\r\n" + chunk(BODY) + LAST,
    "chunks before another coding": HEAD + b"Transfer-Encoding: chunked, x\r\n\r\n" + chunk(BODY) + LAST,
    "an unknown coding": HEAD + b"Transfer-Encoding: xchunked\r\n" + LENGTH + b"\r\n" + BODY + SMUGGLED,
    "a space before the colon": HEAD + LENGTH + b"Transfer-Encoding : chunked\r\n\r\n" + BODY,
    "a vertical tab before the coding": HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + chunk(BODY) + LAST,
    "a folded header": HEAD + LENGTH + b"X: a\r\n b\r\n\r\n" + BODY,
    "a folded coding": HEAD + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + chunk(BODY) + LAST,
    "bare line feeds": (HEAD + LENGTH + b"\r\n").replace(b"\r\n", b"\n") + BODY,
    "one bare line feed": HEAD + b"X: a\n" + LENGTH + b"\r\n" + BODY,
    "a bare carriage return": HEAD + b"X: a\rContent-Length: 0\r\n" + LENGTH + b"\r\n" + BODY,
    "a zero byte": HEAD + b"X: a\x00b\r\n" + LENGTH + b"\r\n" + BODY,
    "a header without a colon": HEAD + b"X\r\n" + LENGTH + b"\r\n" + BODY,
    "a header without a name": HEAD + b": a\r\n" + LENGTH + b"\r\n" + BODY,
    "a path that is not ASCII": HEAD.replace(b"/v1", b"/\xff") + LENGTH + b"\r\n" + BODY,
    "another version": HEAD.replace(b"1.1", b"9.9") + LENGTH + b"\r\n" + BODY,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + SMUGGLED,
    "more than its length": HEAD + LENGTH + b"\r\n" + BODY + b"more",
    **{
        f"length {value!r}": HEAD + b"Content-Length: " + value + b"\r\n\r\n" + BODY
        for value in (b"+16", b"-1", b"0x10", b"16, 16", b"1 6", b"9" * 30, b"1e1", b"", b"\xff")
    },
    **{
        f"chunk {content!r}": HEAD + CHUNKED + b"\r\n" + content
        for content in (
            b"zz\r\n", b"-1\r\n", b"0x10\r\n" + BODY + b"\r\n" + LAST, b"F" * 17 + b"\r\n", b"10\n" + BODY + b"\n0\n\n",
            b"10\r\n" + BODY + b"XX" + LAST, chunk(BODY) + b"0\r\nContent-Length: 5\r\n\r\n" + SMUGGLED,
        )
    },
}  # fmt: skip
TOO_LONG = {
    "header": HEAD + b"X: " + b"a" * MB + b"\r\n" + LENGTH + b"\r\n" + BODY,
    "path": HEAD.replace(b"/v1", b"/" + b"a" * MB) + LENGTH + b"\r\n" + BODY,
    "headers": HEAD + b"X: a\r\n" * (MB // 6) + LENGTH + b"\r\n" + BODY,
    "trailer": HEAD + CHUNKED + b"\r\n" + chunk(BODY) + b"0\r\nX: " + b"a" * MB + b"\r\n\r\n",
    "chunk extension": HEAD + CHUNKED + b"\r\n10;" + b"a" * MB + b"\r\n" + BODY + b"\r\n" + LAST,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running_apis({"API_BODY_MB": "1"}) as running:
        yield running
        answer = httpx.post(f"{running.url}/v1/embeddings", content=BODY)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("case", INVALID)
def test_what_is_not_http_is_refused_and_ends_the_connection(server: Running, case: str) -> None:
    with socket.create_connection(server.address) as connection:
        connection.sendall(INVALID[case])
        received = read(connection)
        assert statuses(received) == [400] and b"smuggled" not in received, received
        assert connection.recv(1) == b""


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_megabyte_that_is_not_a_body_is_refused(server: Running, case: str) -> None:
    received = exchange(server.address, TOO_LONG[case])
    assert statuses(received) == [400] and b"65536 bytes" in received, received


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"Content-Length: 016\r\n\r\n" + BODY,
        HEAD + CHUNKED + b"\r\n" + chunk(BODY[:3]) + b"00d;name=value\r\n" + BODY[3:] + b"\r\n0\r\nX: a\r\n\r\n",
        b"\r\n" + asking(["one"]),
        b"GET /api/version HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED) + SMUGGLED,
        b"GET /api/version HTTP/1.1\r\nHost: x\r\n" + CHUNKED + b"\r\n" + chunk(SMUGGLED) + LAST,
    ],
    ids=["length with a zero", "chunks and a trailer", "an empty line before", "GET with a body", "GET with chunks"],
)
def test_odd_requests_are_one_request(server: Running, sent: bytes) -> None:
    received = exchange(server.address, sent)
    assert statuses(received) == [200] and b"smuggled" not in received, received


def test_pipelined_requests_are_answered_in_order(server: Running) -> None:
    texts = [[f"text {i} of {number}" for i in range(number % 7 + 1)] for number in range(30)]
    sent = b"".join(map(asking, texts)) + b"GET /api/version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with socket.create_connection(server.address) as connection:
        for start in range(0, len(sent), 1_500):  # requests begin and end anywhere in a packet
            connection.sendall(sent[start : start + 1_500])
        answers = read(connection, silence_s=30).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert [answer.count(b'"index"') for answer in answers] == [*map(len, texts), 0]


def test_other_protocols_that_a_client_offers_are_declined(server: Running) -> None:
    """Java's clients offer HTTP/2 so with each request, its body behind it."""
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    sent = HEAD + offer + LENGTH + b"\r\n" + BODY
    with socket.create_connection(server.address) as connection:
        connection.sendall(sent + sent[:-5])
        connection.sendall(
            sent[-5:] + b"GET /api/version HTTP/1.1\r\nHost: x\r\n" + offer + b"\r\n" + asking(["a", "b"])
        )
        received = read(connection, silence_s=2)
    assert statuses(received) == [200] * 4 and received.count(b'"index"') == 4, received


def test_a_client_that_asks_first_is_told_to_go_on_and_what_is_too_large_is_not(server: Running) -> None:
    expecting = HEAD + b"Expect: 100-continue\r\n"
    with socket.create_connection(server.address) as connection:
        connection.sendall(expecting + LENGTH + b"\r\n")
        assert statuses(read(connection)) == [100]
        connection.sendall(BODY)
        assert statuses(read(connection)) == [200]
    assert statuses(exchange(server.address, expecting + b"Content-Length: 100000000\r\n\r\n")) == [413]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", f"/v1/models/{MODEL}:embedContent", "/api/embed"])
def test_a_body_of_100_mb_is_refused_by_its_head(server: Running, path: str) -> None:
    head = HEAD.replace(b"/v1/embeddings", path.encode()) + b"Content-Length: 100000000\r\n\r\n"
    received = exchange(server.address, head)
    assert statuses(received) == [413]
    answer = httpx.Response(
        413, content=received.partition(b"\r\n\r\n")[2], headers={"content-type": "application/json"}
    )
    assert message(path, answer) == "body: it is larger than 1,048,576 bytes; send fewer texts at once"


def test_chunks_beyond_the_limit_are_refused_at_the_limit(server: Running) -> None:
    with socket.create_connection(server.address) as connection:
        connection.sendall(HEAD + CHUNKED + b"\r\n" + chunk(b" " * 1_000_000))
        assert read(connection, SILENCE_S) == b""
        connection.sendall(chunk(b" " * 50_000))
        assert statuses(read(connection)) == [413]


@pytest.mark.parametrize("size", [2 * MB, 100 * MB])
def test_a_client_that_only_reads_when_all_is_sent_learns_why_it_was_refused(server: Running, size: int) -> None:
    connection = http.client.HTTPConnection(*server.address, timeout=30)
    for _ in range(3):
        started = time.monotonic()
        connection.request("POST", "/v1/embeddings", b" " * size)
        answer = connection.getresponse()
        assert answer.status == 413 and b"larger than" in answer.read()
        assert time.monotonic() - started < 10
    connection.request("POST", "/v1/embeddings", BODY)
    assert connection.getresponse().status == 200
    connection.close()
