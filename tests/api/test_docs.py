"""The page at /docs: all that a browser loads for it comes from the same port, and its policy allows nothing else."""

import hashlib
import re
from base64 import b64encode
from html.parser import HTMLParser
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

PREFIXES = ["/", "/embeddings/", "/a/b/"]


class Page(HTMLParser):
    """What a page names, and the scripts in it."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset") and value]
        self._in_script = tag == "script" and not dict(attrs).get("src")

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)
            self._in_script = False


@pytest.fixture(scope="module")
def answer(client: httpx.Client) -> httpx.Response:
    return client.get("/docs")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_asset_is_answered_from_here_behind_any_prefix(
    client: httpx.Client, answer: httpx.Response, prefix: str
) -> None:
    page = Page(answer.text)
    document = re.findall(r'url: "([^"]+)"', "".join(page.scripts))
    assert len(page.names) == 3 and document == ["openapi.json"]
    for name in page.names + document:
        assert not urlsplit(name).netloc and not name.startswith("/"), name
        path = urljoin(f"{prefix}docs", name)
        assert path.startswith(prefix)
        asset = client.get(f"/{path.removeprefix(prefix)}")
        assert asset.status_code == 200 and len(asset.content) > 500, name
        assert (
            asset.headers["content-type"].partition(";")[0]
            in (
                {"js": "text/javascript", "css": "text/css", "png": "image/png", "json": "application/json"}[
                    name.rpartition(".")[2]
                ]
            )
        )


def test_the_assets_load_nothing_from_elsewhere(client: httpx.Client, answer: httpx.Response) -> None:
    assert "//" not in answer.text
    style = client.get("/docs/swagger-ui.css").text
    assert "@import" not in style
    assert {address.strip("\"'")[:5] for address in re.findall(r"url\(([^)]+)\)", style)} == {"data:"}
    assert "SwaggerUIBundle" in client.get("/docs/swagger-ui-bundle.js").text


def test_the_policy_allows_what_the_page_has_and_nothing_from_elsewhere(answer: httpx.Response) -> None:
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    sources = {source for rule in policy.values() for source in rule.split()}
    [script] = Page(answer.text).scripts
    digest = f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    assert sources == {"'none'", "'self'", "'unsafe-inline'", "data:", digest}
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == f"'self' {digest}"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["index.html", "swagger-initializer.js", "../openapi.py", "%2e%2e%2fpage.py"])
def test_nothing_else_of_the_package_is_answered(client: httpx.Client, name: str) -> None:
    assert client.get(f"/docs/{name}").status_code == 404
