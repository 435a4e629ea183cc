"""Each operation is answered with a slash at the end of its path, too, and nothing names an address of its own."""

import asyncio

import httpx
import pytest
from starlette.applications import Starlette

from api.app import OPERATIONS, make_app
from api.bodies import Bodies
from api.endpoint import Host
from api.metrics import Metrics
from api.operations import Operation
from service import Service
from tests.support.apis import BODIES, MODEL


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.path}")
def test_a_slash_at_the_end_changes_nothing(client: httpx.Client, operation: Operation) -> None:
    """A redirect would go to http:// and without the prefix where a proxy has the certificate and a prefix."""
    path = operation.path.replace("{model:path}", MODEL)
    body = BODIES[path](["one", "two"]) if path in BODIES and operation.method == "POST" else None
    plain, slashed = (client.request(operation.method, each, json=body) for each in (path, f"{path.rstrip('/')}/"))
    assert plain.status_code == slashed.status_code
    assert slashed.status_code == 200 or (operation.method == "POST" and body is None), slashed.text
    if isinstance(operation.answers, type) and plain.json() != slashed.json():
        assert {name for name in plain.json() if plain.json()[name] != slashed.json()[name]} <= {"id", "total_duration"}


def test_a_page_behind_a_proxys_prefix_finds_its_document(client: httpx.Client) -> None:
    assert 'url: "openapi.json"' in client.get("/docs").text
    assert client.get("/docs/").headers["location"] == "../docs"
    assert client.get("/openapi.json").json()["servers"] == [{"url": "."}]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/"])
def test_a_path_without_variables_is_found_before_any_route_is_tried(
    service: Service, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    app = make_app(Host(service, None, Bodies(1 << 20, 1 << 20, 1 << 20), Metrics(service)))
    monkeypatch.setattr(Starlette, "__call__", lambda *_: pytest.fail("routes were tried"))

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
            return await client.get(path)

    assert asyncio.run(get()).status_code == 200
