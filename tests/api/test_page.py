"""The page at / for browsers: who gets it, how it is cached and compressed, and what its policy allows."""

import gzip
import hashlib
import json
import re
from urllib.parse import urljoin, urlsplit

import httpx
import pytest

from api.page import FOLDER
from api.static import TYPES
from settings.version import VERSION
from tasks import PROMPTS, SECOND_PROMPTS

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
# As its project's release was bundled; vendor/LICENSE names the releases.
VENDORED = {"parquet.min.js": "7c58abb48e24943c3522df34a77fa7acfa8f20a2f5fdfcd9b7da5223ca4a3881"}


@pytest.fixture(scope="module")
def answer(client: httpx.Client) -> httpx.Response:
    return client.get("/", headers=BROWSER)


def names(answer: httpx.Response) -> list[str]:
    return [name for name in re.findall(r'(?:src|href)="([^"]+)"', answer.text) if name.startswith("page/")]


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "text/plain, */*"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_programs_get_their_answer_and_browsers_the_page(client: httpx.Client, accept: str | None, method: str) -> None:
    for_programs = client.request(method, "/", headers={} if accept is None else {"accept": accept})
    assert for_programs.headers["content-type"].startswith("text/plain")
    assert for_programs.text == ("Ollama is running" if method == "GET" else "")
    for_browsers = client.request(method, "/", headers=BROWSER)
    assert for_browsers.status_code == 200 and for_browsers.headers["content-type"].startswith("text/html")
    assert ("<title>EmbeddingGemma" in for_browsers.text) == (method == "GET")
    assert for_browsers.headers["vary"] == "accept, accept-encoding", "no cache gives one to the other"
    assert client.post("/", headers=BROWSER, json={"inputs": "one"}).status_code == 200


def test_the_policy_allows_this_server_alone_and_nothing_inline(answer: httpx.Response) -> None:
    policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    assert {source for rule in policy.values() for source in rule.split()} == {"'none'", "'self'"}
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=", answer.text)


@pytest.mark.parametrize("prefix", ["/", "/embeddings/"])
def test_every_file_is_found_behind_any_prefix_and_kept_for_good(
    client: httpx.Client, answer: httpx.Response, prefix: str
) -> None:
    assert len(names(answer)) > 12 and "//" not in "".join(names(answer))
    for name in names(answer):
        path = urljoin(f"https://proxy.example{prefix}", name)
        file = client.get(urlsplit(path).path.removeprefix(prefix.rstrip("/")))
        suffix = f".{name.rpartition('.')[2]}"
        assert file.headers["content-type"] == TYPES[suffix]
        assert file.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert file.content == (FOLDER / name.split("/", 2)[2]).read_bytes()


def test_the_page_itself_is_asked_for_again_but_not_sent_again(client: httpx.Client, answer: httpx.Response) -> None:
    assert answer.headers["cache-control"] == "no-cache"
    again = client.get("/", headers=BROWSER | {"if-none-match": answer.headers["etag"]})
    assert again.status_code == 304 and again.content == b""
    assert client.get("/", headers=BROWSER | {"if-none-match": 'W/"other"'}).status_code == 200


def test_files_are_compressed_for_those_who_read_gzip(client: httpx.Client, answer: httpx.Response) -> None:
    for path in ("/", f"/{names(answer)[1]}", "/docs/swagger-ui-bundle.js"):
        plain = client.get(path, headers=BROWSER | {"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        with client.stream("GET", path, headers=BROWSER | {"accept-encoding": "gzip"}) as packed:
            raw = b"".join(packed.iter_raw())
        assert packed.headers["content-encoding"] == "gzip" and len(raw) < len(plain.content) * 0.6
        assert gzip.decompress(raw) == plain.content and packed.headers["etag"] == plain.headers["etag"]


@pytest.mark.parametrize("name", ["index.html", "vendor/LICENSE", "../page.py", "%2e%2e%2fpage.py", "nothing.js", ""])
def test_nothing_else_is_answered(client: httpx.Client, answer: httpx.Response, name: str) -> None:
    version = names(answer)[0].split("/")[1]
    assert client.get(f"/page/{version}/{name}").status_code == 404
    assert client.get("/page/000000000000/main.js").status_code == 404, "another version's"


def test_the_page_knows_the_prompts_and_the_version(answer: httpx.Response) -> None:
    [facts] = re.findall(r'id="facts">(.*?)</script>', answer.text)
    prompts = {"embeddinggemma-300m": PROMPTS, "embeddinggemma-2": SECOND_PROMPTS}
    assert json.loads(facts) == {"prompts": prompts, "version": VERSION} and "{{" not in answer.text


def test_the_page_is_small_makes_no_markup_of_texts_and_names_no_other_host() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.is_file()}
    assert sum(source.count("\n") for source in sources.values()) <= 1_500
    assert max(source.count("\n") for source in sources.values()) <= 200
    for name, source in sources.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", source), (
            name
        )
        addresses = set(re.findall(r"https?://[\w.]+", source)) - {"http://www.w3.org"}  # a namespace
        assert not addresses, name


def test_what_is_not_ours_is_as_it_was_taken_and_has_its_licence() -> None:
    folder = FOLDER / "vendor"
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.js")}
    assert hashes == VENDORED
    licence = (folder / "LICENSE").read_text(encoding="utf-8")
    assert "hyparquet 1.33.0" in licence and "fzstd 0.1.1" in licence and licence.count("Permission is hereby") == 2
