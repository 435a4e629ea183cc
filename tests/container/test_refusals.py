"""What the front refuses, each with a sentence that names the field, before Cog's server hears of it."""

import itertools
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from container.prediction_folders import FOLDER
from container.server import Server
from tests.support import fronts
from tests.support.fronts import Fronted, fronted, whole
from tests.support.sockets import exchange, statuses

HEAD = fronts.HEAD + b"Connection: close\r\n"
PAGE = "https://page.example"
SLEPT = {"slept": True}


@pytest.fixture(autouse=True)
def unheard(cog: Server, request: pytest.FixtureRequest) -> Iterator[None]:
    """Hold a test to Cog's server beginning no prediction, unless its name says that something passes."""
    before = begun(cog)
    yield
    if "pass" not in request.node.name:
        assert begun(cog) == before


def begun(cog: Server) -> int:
    return cog.log.read_text(encoding="utf-8").count("Starting prediction")


def words(answer: httpx.Response) -> str:
    """Return the sentence of a refusal, in either of the shapes that Cog's server has."""
    assert 400 <= answer.status_code < 500 and answer.headers["content-type"] == "application/json", answer.text
    found = answer.json()
    detail = found.get("detail", found.get("error"))
    sentence = detail if isinstance(detail, str) else detail[0]["msg"]
    assert ";" in sentence and "\n" not in sentence and len(sentence) < 400, sentence
    return str(sentence)


PATHS = ["/shutdown", "/trainings", "/trainings/a", "/docs", "/predictions/", "//predictions", "/health-check/"]
PATHS += ["/predictions/../shutdown", "/%73hutdown", "/shutdown?x=1", "/./shutdown", "/metrics", "/Predictions"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_paths_that_are_not_listed_do_not_exist(front: Fronted, path: str, method: str) -> None:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    assert statuses(exchange(front.address, head.encode()))[0] in (404, 422, 405)


ROUTES = {"/": {"GET"}, "/health-check": {"GET"}, "/openapi.json": {"GET"}, "/predictions": {"POST"}}
ROUTES |= {"/predictions/a": {"PUT"}, "/predictions/a/cancel": {"POST"}}
METHODS = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"]
WRONG_METHODS = [(path, method) for path, right in ROUTES.items() for method in METHODS if method not in right]


@pytest.mark.parametrize(("path", "method"), WRONG_METHODS)
def test_methods_that_a_path_has_not_are_refused(front: Fronted, path: str, method: str) -> None:
    answer = httpx.request(method, front.url + path)
    assert answer.status_code == 405 and f"{method} {path}: this path has no such method" in words(answer)
    assert answer.headers["allow"].split(", ")[0] in ROUTES[path]


IDS = ["../x", "..", "/etc/x", "a/b", "a b", "a.b", "é", "a\0b", "a\nb", "x" * 65, "", "%2e%2e%2fx", "~", "a\\b", "id;"]


@pytest.mark.parametrize("given", IDS)
def test_an_id_in_the_body_that_could_be_a_path_is_refused(front: Fronted, given: str) -> None:
    for path, method in (("/predictions", "POST"), ("/predictions/a", "PUT")):
        answer = front.post({"id": given, "input": {"text": "sleep 0"}}, path, method)
        assert answer.status_code == 422 and "id: " in words(answer)
        assert answer.json()["detail"][0]["loc"] == ["body", "id"]


@pytest.mark.parametrize(
    "given", ["..", "%2e%2e", "..%2fx", "a/b", "a%00b", "a.b", "x" * 65, "%61", "", "a//", "\\", "*"]
)
@pytest.mark.parametrize("end", ["", "/cancel"])
def test_an_id_in_the_url_that_could_be_a_path_is_refused(front: Fronted, given: str, end: str) -> None:
    method = b"POST" if end else b"PUT"
    head = HEAD.replace(b"POST /predictions", b"%s /predictions/%s%s" % (method, given.encode(), end.encode()))
    received = exchange(front.address, whole(b"{}", head))
    assert statuses(received) == [422] and b"id: " in received


@pytest.mark.parametrize(
    "given", ["a", "x" * 64, "wjx7ytvn6gd2bh3mltvdbkmhdy", "8f14e45f-ceea-467f-a3b2-c1d2e3f4a5b6", "pred_18eC-"]
)
def test_ids_that_clients_use_pass(front: Fronted, given: str) -> None:
    body = {"id": given, "input": {"text": "sleep 0"}}
    for answer in (front.post(body), front.post(body, f"/predictions/{given}", "PUT")):
        assert (answer.json()["id"], answer.json()["output"]) == (given, SLEPT)


def test_an_id_that_differs_from_the_urls_is_refused(front: Fronted) -> None:
    answer = front.post({"id": "b", "input": {"text": "sleep 0"}}, "/predictions/a", "PUT")
    assert answer.status_code == 422 and words(answer).startswith("id: it differs from the id in the URL")


def test_no_folder_is_made_elsewhere(front: Fronted, tmp_path: Path) -> None:
    for given in (str(tmp_path / "made"), f"../../..{tmp_path}/made", "..made"):
        front.post({"id": given, "input": {"text": "sleep 0"}})
    assert not list(tmp_path.iterdir()) and not (FOLDER.parent / "..made").exists()


TYPES = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx"]
TYPES += [
    "application/json; charset=latin-1",
    "application/json, text/plain",
    "text/json",
    "",
    "application/vnd.api+json",
]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("path", ["/predictions", "/predictions/a", "/predictions/a/cancel"])
def test_bodies_that_are_not_called_json_are_refused(front: Fronted, kind: str, path: str) -> None:
    method = "PUT" if path.endswith("/a") else "POST"
    answer = httpx.request(method, front.url + path, content=b"{}", headers={"content-type": kind})
    assert answer.status_code == 415 and words(answer).startswith("Content-Type: it is not application/json")


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", 'application/json;charset="UTF-8"']
)
def test_json_passes_with_its_charset(front: Fronted, kind: str) -> None:
    body = b'{"input": {"text": "sleep 0"}}'
    answer = httpx.post(f"{front.url}/predictions", content=body, headers={"content-type": kind})
    assert answer.json()["output"] == SLEPT


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity"])
def test_compressed_bodies_are_refused(front: Fronted, coding: str) -> None:
    headers = {"content-type": "application/json", "content-encoding": coding}
    answer = httpx.post(f"{front.url}/predictions", content=b"\x1f\x8b", headers=headers)
    assert answer.status_code == 415 and words(answer).startswith("Content-Encoding: ")


NO_JSON = [b"{", b"nope", b'{"input": {"text": "sleep 0"}} x', b"\xff", b'{"input": {"text": 0x1}}', b"\xef\xbb\xbf{}"]
NO_JSON += [b'{"input": {"text": "\\ud800"}}', b'{"input": {"text": NaN}}', b'{"input": {"texts": ' + b"[" * 100_000]


@pytest.mark.parametrize("body", NO_JSON, ids=range(len(NO_JSON)))
def test_bodies_that_are_no_json_are_refused(front: Fronted, body: bytes) -> None:
    answer = httpx.post(f"{front.url}/predictions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413, 422) and words(answer).startswith("body: ")


def test_what_is_not_utf_8_is_refused_by_cogs_server(front: Fronted) -> None:
    body = b'{"input": {"text": "\xff"}}'
    answer = httpx.post(f"{front.url}/predictions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and "input.text: invalid unicode code point" in answer.text


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ([], "body: expected object, got array"),
        ("text", "body: expected object, got str"),
        ({"input": []}, "input: expected object, got array"),
        ({"input": "text"}, "input: expected object, got str"),
        ({"input": {"text": "a", "tsk": "b"}}, "'tsk' is no input; did you mean 'task'?"),
        ({"input": {"dimensions": 5}}, "'dimensions' is no input; "),
        ({"input": {"": 5}}, "'' is no input; /openapi.json has the inputs"),
        ({"inputs": {}}, "'inputs' is no field of a prediction; did you mean 'input'?"),
        ({"text": "a"}, "'text' is no field of a prediction; inputs belong in \"input\", and beside it only id, con"),
        ({"output_file_prefix": "http://127.0.0.1"}, "'output_file_prefix' is no field of a prediction; "),
        ({"id": 5}, "id: expected str, got int"),
        ({"webhook": ["http://a"]}, "webhook: expected str, got array"),
    ],
    ids=str,
)
def test_what_the_model_has_not_is_named(front: Fronted, body: Any, problem: str) -> None:
    answer = front.post(body)
    assert answer.status_code == 422 and words(answer).startswith(problem)


FILES = [
    "file:///etc/passwd",
    "/etc/passwd",
    "ftp://a/b",
    "gopher://a",
    "one.txt",
    "",
    " http://a",
    "s3://b/k",
    "//a/b",
]


@pytest.mark.parametrize("file", FILES)
def test_files_elsewhere_than_at_urls_are_refused(front: Fronted, file: str) -> None:
    answer = front.post({"input": {"file": file}})
    assert (
        answer.status_code == 422
        and words(answer) == "file: it is no URL; give one that begins with http://, https:// or data:"
    )


def test_a_scheme_cannot_be_hidden_in_escapes(front: Fronted) -> None:
    body = b'{"input": {"file": "\\u0066ile:///etc/passwd"}}'
    answer = httpx.post(f"{front.url}/predictions", content=body, headers={"content-type": "application/json"})
    assert words(answer).startswith("file: it is no URL")


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "a", "id": "../x", "input": {"text": "sleep 0"}}',
        b'{"input": {"text": "sleep 0"}, "input": {"tsk": 1}}',
        b'{"input": {"file": "data:,a", "file": "file:///etc/passwd"}}',
        b'{"webhook": null, "webhook": "http://127.0.0.1:9/"}',
    ],
    ids=["id", "input", "file", "webhook"],
)
def test_the_last_of_two_keys_is_the_one_that_counts(front: Fronted, body: bytes) -> None:
    answer = httpx.post(f"{front.url}/predictions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422


def test_of_two_keys_only_the_checked_one_is_passed_on(front: Fronted) -> None:
    body = (
        b'{"id": "../x", "id": "good", "input": {"text": "sleep 99"}, "input": {"text": "sleep 98", "text": "sleep 0"}}'
    )
    answer = httpx.post(
        f"{front.url}/predictions", content=body, headers={"content-type": "application/json"}, timeout=60
    )
    assert (answer.json()["id"], answer.json()["output"]) == ("good", SLEPT)


def test_more_values_than_are_allowed_are_refused_unread(cog: Server) -> None:
    with fronted(cog, body_values=1_000) as front:
        texts: list[Any]
        for texts in ([""] * 70, [[]] * 70, [{"a": 1}] * 40, [1] * 1_001, [1] * 200_000):
            answer = front.post({"input": {"texts": texts}})
            assert answer.status_code == 413
            assert words(answer) == (
                "body: it has more than 1,000 values, of which each string, list and object counts as 16; send fewer "
                "at once, or set COG_BODY_VALUES"
            )


def test_commas_in_texts_are_no_values_and_pass(cog: Server) -> None:
    with fronted(cog, body_values=1_000) as front:
        assert front.post({"input": {"text": "sleep 0 " + ',[{"' * 100_000}}).json()["output"] == SLEPT


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_bodies_beyond_the_limit_are_refused(cog: Server, chunked: bool) -> None:
    body = b'{"input": {"text": "%s"}}' % (b"a" * 200_000)
    with fronted(cog, body_bytes=100_000) as front:
        for _ in range(3):  # a client that still sends may lose an answer that comes early
            content = iter([body[:50_000], body[50_000:]]) if chunked else body
            with suppress(httpx.TransportError):
                answer = httpx.post(
                    f"{front.url}/predictions", content=content, headers={"content-type": "application/json"}
                )
                break
        assert answer.status_code == 413 and words(answer).endswith("send fewer texts at once, or set COG_BODY_MB")
        assert front.front.held_bytes == 0


WEBHOOKS = ("hooks.example", "https://page.example", "127.0.0.1:9000")
HOOKS = {
    "http://hooks.example/a?b=c": True,
    "https://HOOKS.example:8443/": True,
    "https://page.example": True,
    "https://page.example:443/x": True,
    "http://127.0.0.1:9000/": True,
    "http://page.example/": False,
    "https://page.example:8443/": False,
    "http://127.0.0.1/": False,
    "http://127.0.0.1:9001/": False,
    "http://hooks.example.evil/": False,
    "http://hooks.example@evil.example/": False,
    "http://evil.example/hooks.example": False,
    "http://evil.example#hooks.example": False,
    "http://evil.example\\@hooks.example/": False,
    "http://hooks.example:80@evil.example/": False,
    "http:/\\evil.example": False,
    " http://hooks.example/": False,
    "http://hooks.example/\r\nX: y": False,
    "ftp://hooks.example/": False,
    "http://0x7f.1:9000/": False,
    "": False,
}


@pytest.mark.parametrize("hook", HOOKS)
def test_webhooks_go_where_the_setting_says_alone(front: Fronted, hook: str) -> None:
    assert front.front.rules.webhooks == ()
    assert words(front.post({"input": {"text": "sleep 0"}, "webhook": hook})).startswith("webhook: this server may not")
    assert replace(front.front.rules, webhooks=WEBHOOKS).allows_webhook(hook) is HOOKS[hook]
    assert replace(front.front.rules, webhooks=("*",)).allows_webhook(hook) or not HOOKS[hook]


FOREIGN: list[dict[str, str]] = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://127.0.0.1:1"},
    {"origin": "http://localhost:3000", "host": "localhost:5000"},
    {"origin": "http://rebound.example", "host": "rebound.example"},
    {"origin": "http://rebound.example:5000", "host": "rebound.example:5000"},
    {"origin": "file://"},
    {"sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize("sent", FOREIGN, ids=str)
def test_what_a_page_elsewhere_sends_is_refused(front: Fronted, sent: dict[str, str]) -> None:
    for method, path in itertools.chain(*(((m, p) for m in right) for p, right in ROUTES.items())):
        answer = httpx.request(method, front.url + path, headers=sent | {"content-type": "application/json"})
        assert answer.status_code == 403 and "list its origin in API_ORIGINS" in words(answer), path
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["127.0.0.1:5000", "localhost:5000", "[::1]:5000", "192.168.1.9", "a.localhost"])
def test_a_page_of_this_server_itself_may_ask_and_passes(front: Fronted, host: str) -> None:
    body = {"input": {"text": "sleep 0"}}
    assert front.post(body, origin=f"http://{host}", host=host).json()["output"] == SLEPT


def test_pages_that_are_listed_pass_and_read_the_answer(cog: Server) -> None:
    with fronted(cog, origins=(PAGE,), api_key="secret") as front:
        asking = {"origin": PAGE, "access-control-request-method": "POST"}
        preflight = httpx.options(f"{front.url}/predictions", headers=asking)
        assert preflight.status_code == 204 and preflight.headers["access-control-allow-origin"] == PAGE
        assert "authorization" in preflight.headers["access-control-allow-headers"]
        answer = front.post({"input": {"text": "sleep 0"}}, origin=PAGE, authorization="Bearer secret")
        assert answer.json()["output"] == SLEPT and answer.headers["access-control-allow-origin"] == PAGE
        refused = front.post({"input": {"tsk": ""}}, origin=PAGE, authorization="Bearer secret")
        assert refused.status_code == 422 and refused.headers["access-control-allow-origin"] == PAGE
        asking["origin"] = "https://evil.example"
        assert httpx.options(f"{front.url}/predictions", headers=asking).status_code == 403


def test_with_a_key_only_health_and_the_root_pass_without_it(cog: Server) -> None:
    with fronted(cog, api_key="secret") as front:
        for path in ROUTES:
            for method in ROUTES[path]:
                for sent in ("", "Bearer wrong", "Bearer secret2", "Basic secret", "secret", "Bearer é"):
                    headers = {b"authorization": sent.encode("latin-1"), b"content-type": b"application/json"}
                    answer = httpx.request(method, front.url + path, headers=headers)
                    assert answer.status_code == (200 if path in ("/", "/health-check") else 401), (path, sent)
        for sent in ("Bearer secret", "bearer  secret"):
            assert front.post({"input": {"text": "sleep 0"}}, authorization=sent).json()["output"] == SLEPT


REPEATED = [b"Host: y", b"Content-Type: text/plain", b"Origin: https://evil.example\r\nOrigin: http://127.0.0.1"]
REPEATED += [b"Authorization: a\r\nAuthorization: b", b"Prefer: a\r\nPrefer: b"]


@pytest.mark.parametrize("more", REPEATED)
def test_headers_that_are_sent_twice_are_refused(front: Fronted, more: bytes) -> None:
    received = exchange(front.address, whole(b"{}", HEAD + more + b"\r\n"))
    assert statuses(received) == [400] and b"this header was sent twice" in received


AMBIGUOUS = {
    "both lengths": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a signed length": HEAD + b"Content-Length: +2\r\n\r\n{}",
    "an unknown coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "a bare line feed": b"GET / HTTP/1.1\nHost: x\n\n",
    "a folded header": b"GET / HTTP/1.1\r\nHost: x\r\n y\r\n\r\n",
    "a blank in the URL": b"GET /a b HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a proxy's request": b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a whole URL": b"GET http://evil.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "a large head": b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 70_000,
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_two_servers_could_read_differently_is_refused(front: Fronted, name: str) -> None:
    received = exchange(front.address, AMBIGUOUS[name])
    assert statuses(received) in ([400], [404], [431]), received[:200]


def test_refused_texts_are_in_no_log(front: Fronted, caplog: pytest.LogCaptureFixture) -> None:
    canary = "canary-5b1f"
    for body in ({"input": {canary: canary}}, {canary: 1}, {"id": f"{canary}/"}, {"webhook": f"http://{canary}"}):
        front.post(body)
    httpx.post(f"{front.url}/predictions", content=canary, headers={"content-type": "application/json"})
    httpx.get(f"{front.url}/{canary}")
    assert canary not in caplog.text and json.dumps(canary) not in caplog.text
