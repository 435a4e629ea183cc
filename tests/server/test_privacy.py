"""No line of a log, and nothing that a server keeps, holds what clients sent or a secret of the settings."""

import base64
import gzip
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from container.make_openapi import OPENAPI
from container.server import Server, free_port, running_server
from settings.version import NAMED
from tests.support.apis import BODIES
from tests.support.hub import running_hub
from weights import SMALL

# What clients send somewhere in every request, and what the settings must keep to themselves.
CANARY, SECRET = "kanarienvogel", "geheimnis"
CLIENT = httpx.Client(timeout=60, headers={"authorization": f"Bearer {SECRET}"})
SENT = [CANARY, 5, True, [CANARY], [[CANARY]], {CANARY: CANARY}, [{CANARY: 1}], f"{CANARY}\ud800", "", None, 1e400, -1]
CONTENTS: Mapping[str, list[bytes]] = {
    "txt": [f"{CANARY}\n\n{CANARY}".encode(), CANARY.encode() + b"\xff\n"],
    "jsonl": [
        *(f"{line}\n".encode() for line in (f"{{{CANARY}", f'"{CANARY}"', f'{{"{CANARY}": 1}}', f'["{CANARY}"]')),
        *(json.dumps({"text": sent, "id": sent, CANARY: 1}).replace("Infinity", "1e400").encode() for sent in SENT),
        f'{{"text": "a", "id": "{CANARY}"}}\n{{"text": "b", "id": 5}}\n{{"text": "c", "text": "{CANARY}"}}'.encode(),
    ],
    "csv": [
        f"{CANARY},{CANARY}\n1,2\n".encode(),
        f"text,{CANARY}\n{CANARY}\n".encode(),
        f'text,id\n"{CANARY},{CANARY}\n'.encode(),
        f"text,id\n,{CANARY}\n{CANARY},{CANARY},{CANARY}\n".encode(),
        f"text,id\n{CANARY}\0,\xff{CANARY}".encode("latin-1"),
    ],
    "parquet": [CANARY.encode(), b"PAR1" + CANARY.encode() + b"PAR1"],
}
COLUMNS: list[dict[str, Any]] = [{}, {"id_column": "id"}, {"text_column": CANARY}, {"title_column": CANARY}]


@dataclass
class Watched:
    """A server whose WEIGHTS have a password and a signature, its other APIs and its cache of weights."""

    cog: Server
    apis: str
    cache: Path


@pytest.fixture(scope="module", params=["behind the front", "alone"])
def watched(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder, cache = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("weights")
    with tarfile.open(folder / "model.tar", "w") as archive:
        archive.add(SMALL, ".")
    port = free_port()
    with running_hub(folder) as hub:
        hub.faults.statuses, hub.faults.cuts = [503], [0.5]  # what is tried again is told
        address = hub.url.replace("//", f"//user:{SECRET}@") + f"/model.tar?X-Amz-Signature={SECRET}/{SECRET}.tar"
        settings = {"API_PORT": str(port), "API_KEY": SECRET, "WEIGHTS_CACHE": str(cache), "HF_TOKEN": f"hf_{SECRET}"}
        settings |= {"LOG_LEVEL": "debug", "LOG_FORMAT": "json"}
        with running_server(address, settings=settings, front=request.param != "alone") as server:
            yield Watched(server, f"http://127.0.0.1:{port}", cache)


def check_log(watched: Watched, *words: str) -> None:
    log = watched.cog.log.read_text(encoding="utf-8").lower()
    for word in words:
        at = log.find(word)
        assert at < 0, log[max(0, at - 500) : at + 200]


def test_secrets_of_the_settings_stand_nowhere(watched: Watched) -> None:
    log = watched.cog.log.read_text(encoding="utf-8")
    assert "trying again" in log and "loading model@sha256:" in log and "/model.tar?***" in log
    check_log(watched, SECRET)
    health = CLIENT.get(f"{watched.cog.url}/health-check").text
    answer = _predict(watched, {"text": "a"}).json()
    key = {"authorization": f"Bearer {SECRET}"}
    embedded = CLIENT.post(f"{watched.apis}/embed", json={"inputs": "a"}, headers=key)
    assert embedded.headers["x-model"].startswith("model@sha256:")
    shown = [health, str(answer), str(embedded.headers), *(CLIENT.get(watched.apis + path).text for path in SHOWN)]
    assert SECRET not in "".join(shown)
    kept = [path for path in watched.cache.rglob("*") if path.suffix != ".safetensors"]
    assert len(kept) > 5 and SECRET not in " ".join(map(str, kept))
    assert not any(SECRET.encode() in path.read_bytes() for path in kept if path.is_file())


SHOWN = ("/v1/models", "/info", "/metrics", "/api/tags", "/openapi.json")


def _predict(watched: Watched, inputs: dict[str, Any], **around: Any) -> httpx.Response:
    body = json.dumps({"input": inputs} | around).replace("Infinity", "1e400")
    return CLIENT.post(f"{watched.cog.url}/predictions", content=body, headers=JSON)


JSON = {"content-type": "application/json", "x-note": CANARY}


def test_errors_of_predictions_are_not_logged(watched: Watched) -> None:
    schema = json.loads(OPENAPI.read_text(encoding="utf-8"))["components"]["schemas"]["Input"]["properties"]
    seen: set[int] = set()
    for name in schema:
        for sent in SENT:
            for beside in ({}, {"text": CANARY}, {"texts": [CANARY, CANARY]}):
                seen.add(_predict(watched, beside | {name: sent}).status_code)
    for url in _bad_urls():
        seen.add(_predict(watched, {"file": url}).status_code)
    for body in (CANARY, f'{{"{CANARY}', f'["{CANARY}"]', f'{{"input": "{CANARY}"}}'):
        seen.add(CLIENT.post(f"{watched.cog.url}/predictions", content=body, headers=JSON).status_code)
    CLIENT.put(f"{watched.cog.url}/predictions/{CANARY}", json={"input": {"text": ""}})
    CLIENT.post(f"{watched.cog.url}/predictions/{CANARY}/cancel")
    CLIENT.get(f"{watched.cog.url}/{CANARY}?{CANARY}")
    _predict(watched, {"text": "a"}, webhook=f"http://127.0.0.1:9/{CANARY}", id=CANARY)
    _predict(watched, {"text": "a"}, webhook=CANARY, context={CANARY: CANARY})
    cut = _predict(watched, {"texts": [f"{CANARY} " * 3000] * 2}).json()
    assert "cut at the end to 2048 tokens: texts[0], texts[1]" in cut["logs"] and CANARY not in cut["logs"]
    assert {200, 422} <= seen
    check_log(watched, CANARY, SECRET)


def test_every_line_of_the_log_is_json_and_ours_tell_their_level(watched: Watched) -> None:
    lines = [json.loads(line) for line in watched.cog.log.read_text(encoding="utf-8").splitlines()]
    ours = [line["fields"]["message"] for line in lines if line["target"] == "coglet::setup"]
    assert ours[0] == f"INFO predict: {NAMED}"
    assert any(each.startswith("WARNING fetching.download: ") for each in ours)


def _bad_urls() -> Iterator[str]:
    for url in (
        "http://{}/x",
        "http://{}.invalid/x",
        "http://{}:{}@127.0.0.1/{}?{}#{}",
        "data:{}",
        "data:{};base64,{}",
    ):
        yield url.replace("{}", CANARY)
    yield from (CANARY, f"ftp://{CANARY}/", f"/etc/{CANARY}", f"https://127.0.0.1:1/{CANARY}.csv", f"http://[{CANARY}")


@pytest.mark.parametrize("watched", ["alone"], indirect=True)  # the front reads no file
def test_errors_of_files_are_not_logged(watched: Watched) -> None:
    table = pa.table({"text": ["a", "", CANARY, None], "id": [CANARY] * 4, CANARY: [1, 2, 3, 4]})
    sink = io.BytesIO()
    pq.write_table(table, sink)
    failed = 0
    for kind, contents in CONTENTS.items():
        for content in [*contents, *([sink.getvalue()] if kind == "parquet" else [])]:
            url = f"data:application/octet-stream;base64,{base64.b64encode(content).decode()}"
            for columns in COLUMNS:
                for on_error in ("stop", "skip"):
                    inputs = {"file": url, "file_format": kind, "on_error": on_error} | columns
                    failed += _predict(watched, inputs).json().get("status") == "failed"
    assert failed > 100
    check_log(watched, CANARY)


def _spoilt(body: Any) -> Iterator[Any]:
    """Yield a body with each of its values replaced in turn, and with fields that are not known."""
    if isinstance(body, dict):
        yield body | {CANARY: 1}
        yield {CANARY if name == next(iter(body)) else name: value for name, value in body.items()}
        for name, value in body.items():
            yield from (body | {name: sent} for sent in SENT)
            yield from (body | {name: each} for each in _spoilt(value))
    elif isinstance(body, list):
        yield from ([sent] for sent in SENT)
        for each in body[:1]:
            yield from ([spoilt] for spoilt in _spoilt(each))


FIELDS = ("model", "encoding_format", "dimensions", "input_type", "task", "truncate", "title", "tokenizer", "options")


@pytest.mark.parametrize("watched", ["alone"], indirect=True)  # the front is not before them
def test_errors_of_other_apis_are_not_logged(watched: Watched) -> None:
    seen: set[int] = set()
    key = JSON | {"authorization": f"Bearer {SECRET}"}
    with httpx.Client(base_url=watched.apis, timeout=60) as client:
        for path, body_of in BODIES.items():
            body = body_of([CANARY, f"{CANARY} too"])
            for each in (*_spoilt(body), *(body | {name: sent} for name in FIELDS for sent in SENT)):
                content = json.dumps(each).replace("Infinity", "1e400")
                seen.add(client.post(path, content=content, headers=key).status_code)
            for headers in ({}, {"authorization": CANARY}, key | {"content-encoding": CANARY}):
                seen.add(client.post(f"{path}?{CANARY}={CANARY}", json=body, headers=headers).status_code)
            broken = gzip.compress(CANARY.encode() * 100)[:-9]
            seen.add(client.post(path, content=broken, headers=key | {"content-encoding": "gzip"}).status_code)
            for content in (CANARY, f'{{"{CANARY}"', f'{{"input": "{CANARY}'):
                seen.add(client.post(path, content=content, headers=key).status_code)
        for path in (f"/{CANARY}", f"/v1/models/{CANARY}", f"/v1beta/models/{CANARY}:embedContent", f"/{CANARY}?key=a"):
            seen |= {client.get(path, headers=key).status_code, client.post(path, json={}, headers=key).status_code}
        client.request(CANARY.upper(), "/", headers=key)
    assert {200, 400, 401, 404} <= seen and 500 not in seen
    check_log(watched, CANARY, SECRET)


def test_nobody_is_told_what_was_computed_before_where_there_is_a_key(watched: Watched, server: Server) -> None:
    telling = {"queue_ms", "compute_ms", "batch_size", "cache_hits"}
    for _ in range(2):
        assert not telling & _predict(watched, {"text": "asked before?"}).json()["metrics"].keys()
    metrics = CLIENT.get(f"{watched.apis}/metrics").text
    assert "te_request_count" in metrics and "te_embed_tokens" in metrics
    for name in ("cache_hits", "te_batch_", "te_request_queue_", "te_request_inference_"):
        assert name not in metrics
    assert telling < server.predict({"text": "asked before?"})["metrics"].keys()
