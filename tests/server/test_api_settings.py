"""What the other APIs' settings do: a key, browsers' pages, and a folder of weights."""

import http.client
import json
import shutil
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.apis import BODIES, MODEL, Running, api_of, message, running_apis

KEY = "a secret"
OPEN = [
    "/weaviate/query/.well-known/ready",
    "/live",
    "/ready",
    "/health",
    "/metrics",
    "/v1/models",
    f"/v1/models/{MODEL}",
    "/docs",
    "/openapi.json",
]
LOCKED = ["/weaviate/meta", "/info", "/api/tags", "/api/version"]
PAGE = "https://page.example"
# Basic authentication with no password, and what is not base64.
UNKEYED = [{"authorization": f"Basic {coded}"} for coded in (b64encode(KEY.encode()).decode(), KEY, "/w==", "=")]


@pytest.fixture(scope="module")
def locked(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that all machines may reach, with a key, and that pages of two origins may call."""
    directory = shutil.copytree(small, tmp_path_factory.mktemp("weights") / "gewichte-漢字")
    settings = {"API_KEY": f" {KEY}\n", "API_ORIGINS": f"{PAGE}/, https://Other.example:443\n"}
    with running_apis(settings, options=("--host", "0.0.0.0", "--weights", str(directory))) as server:
        yield server


@pytest.fixture
def client(locked: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.url, timeout=30) as open_client:
        yield open_client


@pytest.mark.parametrize("path", BODIES)
def test_a_key_is_needed_and_taken_as_each_api_sends_it(client: httpx.Client, path: str) -> None:
    body = BODIES[path](["one", "two"])
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": KEY[:-1]},
        {"x-goog-api-key": "wrong"},
        *UNKEYED,
    ):
        answer = client.post(path, json=body, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert "API_KEY" in message(path, answer) and KEY not in answer.text
    assert client.post(path, json=body, params={"key": "wrong"}).status_code == 401
    own = {"Gemini": "x-goog-api-key", "Weaviate": "//weaviate:KEY@host"}.get(api_of(path), "Authorization: Bearer")
    assert own in message(path, client.post(path, json=body))
    keys = [{"headers": {"authorization": f"{scheme}{KEY}"}} for scheme in ("Bearer ", "bearer ", "BEARER   ", "")]
    basic = b64encode(f"anybody:{KEY}".encode()).decode()
    keys += [{"params": {"key": KEY}}, {"headers": {"authorization": f"Basic {basic}"}}]
    if api_of(path) == "Gemini":
        keys.append({"headers": {"x-goog-api-key": KEY}})
    for key in keys:
        assert client.post(path, json=body, **key).status_code == 200  # type: ignore[arg-type]


def test_a_body_without_the_key_is_not_even_read(locked: Running) -> None:
    connection = http.client.HTTPConnection(*locked.address, timeout=30)  # it reads nothing before all is sent
    for body in (b"{", b" " * 40_000_000):
        connection.request("POST", "/v1/embeddings", body)
        answer = connection.getresponse()
        assert answer.status == 401 and b"API_KEY" in answer.read()
    connection.close()


def test_what_probes_and_clients_ask_first_needs_no_key(client: httpx.Client) -> None:
    assert {path: client.get(path).status_code for path in OPEN} == dict.fromkeys(OPEN, 200)
    assert {path: client.get(path).status_code for path in LOCKED} == dict.fromkeys(LOCKED, 401)


def test_pages_of_the_origins_that_are_listed_may_call_and_no_others(client: httpx.Client) -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    allowed = client.options("/v1/embeddings", headers={"origin": PAGE} | asking)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == PAGE
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    refused = client.options("/v1/embeddings", headers={"origin": "https://evil.example"} | asking)
    assert refused.status_code == 400 and "access-control-allow-origin" not in refused.headers
    for origin in (PAGE, "https://other.example"):
        headers = {"origin": origin, "authorization": f"Bearer {KEY}"}
        answer = client.post("/embed", json={"inputs": "one"}, headers=headers)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == origin
        # A page may read why it was refused, too.
        answer = client.post("/embed", json={"inputs": "one"}, headers={"origin": origin})
        assert answer.status_code == 401 and answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "sent",
    [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}],
    ids=["origin", "null", "no origin"],
)
def test_pages_of_other_sites_have_no_work_done(client: httpx.Client, path: str, sent: dict[str, str]) -> None:
    """A page may send text/plain anywhere without asking, and reads no answer; the work would be done."""
    headers = {"authorization": f"Bearer {KEY}", "x-goog-api-key": KEY, "content-type": "text/plain"} | sent
    answer = client.post(path, content=json.dumps(BODIES[path](["one"])), headers=headers)
    assert answer.status_code == 403 and "list its origin in API_ORIGINS" in message(path, answer)


@pytest.mark.parametrize(
    "sent",
    [
        {"origin": "https://named.example", "host": "named.example"},
        {"origin": "http://named.example:8080", "host": "named.example:8080"},
        {"origin": "https://named.example", "x-forwarded-host": "named.example"},
        {"origin": "https://named.example", "sec-fetch-site": "same-origin"},
    ],
    ids=["host", "port", "forwarded", "the browser says so"],
)
def test_the_servers_own_pages_may_call_behind_a_proxy_too(client: httpx.Client, sent: dict[str, str]) -> None:
    headers = {"authorization": f"Bearer {KEY}"} | sent
    assert client.post("/embed", json={"inputs": "one"}, headers=headers).status_code == 200


def test_weights_in_a_folder_of_any_name_are_served(client: httpx.Client) -> None:
    answer = client.post("/v1/embeddings", json={"input": "one"}, headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 200 and answer.json()["model"].startswith("gewichte-漢字@")
    assert answer.headers["x-model"].startswith(r"gewichte-\u6f22\u5b57@")
