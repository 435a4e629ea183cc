"""Servers that are not ours, servers that cannot be asked, and the command's words and exit status."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from container.make_openapi import ROOT
from lab.clients import AskError, Client
from lab.judging.expected import Expected
from lab.judging.faults import FAULTS
from lab.judging.judge import judge
from lab.judging.judgement import Judgement, cell, page
from tests.support.reference_server import running_reference_server


@contextmanager
def answering(answers: dict[str, tuple[int, Any]]) -> Iterator[str]:
    """Yield the URL of a server that answers each path with one status and content."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            status, content = answers.get(self.path, (404, {"error": "not found"}))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content.encode() if isinstance(content, str) else json.dumps(content).encode())

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.evaluation
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sentence_transformers_served_is_right(small_vectors: Expected, small: Any, dtype: str) -> None:
    with running_reference_server(small, dtype) as url:
        judgement = judge(Client(url, "tei"), small_vectors)
        assert judgement.is_right, judgement.found
        assert "The server has no prompts for fact_verification, question_answering: not judged." in judgement.remarks
        assert ("short texts, against a right server", 24) in [step[:2] for step in judgement.steps]
        if dtype == "bfloat16":  # through which API, does not matter to rounding
            return
        judgement = judge(Client(url, "openai"), small_vectors, client_prompts=True)
        assert judgement.is_right, judgement.found
        judgement = judge(Client(url, "openai"), small_vectors)
        assert [finding.fault.name for finding in judgement.found] == ["no prompt"]
        assert "--prompts client" in page(judgement, {})


@pytest.mark.parametrize(
    ("answers", "api", "problem"),
    [
        ({}, "tei", "HTTP 404: .*; check --url, --api, --model and --key"),
        ({"/embed": (200, {"data": []})}, "tei", "the answer is not tei's .*; check --url and --api"),
        ({"/embed": (200, "hello")}, "tei", "the answer is not tei's"),
        ({"/embed": (200, [[1.0, 2.0], [1.0, 2.0]])}, "tei", "2 vectors for 1 texts; one for each was expected"),
        ({"/v1/models": (200, {"data": [{"id": "a"}, {"id": "b"}]})}, "openai", "has the models a, b; name .* --model"),
    ],
)
def test_a_server_that_cannot_be_asked_is_said_so(
    small_vectors: Expected, answers: dict[str, tuple[int, Any]], api: str, problem: str
) -> None:
    with answering(answers) as url, pytest.raises(AskError, match=problem):
        judge(Client(url, api), small_vectors)


def test_a_server_that_fails_at_texts_is_found(small_vectors: Expected) -> None:
    with answering({"/api/embed": (500, {"error": "overflow"}), "/api/tags": (200, {"models": []})}) as url:
        judgement = judge(Client(url, "ollama"), small_vectors)
    [finding] = judgement.found
    assert finding.fault == FAULTS["requests fail"] and "28 of 28" in finding.figures and "overflow" in finding.figures


def test_null_and_nan_are_numbers_that_are_missing(small_vectors: Expected) -> None:
    for content in ("[[null, 1.0]]", "[[NaN, 1.0]]"):
        with answering({"/embed": (200, content)}) as url:
            judgement = judge(Client(url, "tei"), small_vectors)
        assert [finding.fault.name for finding in judgement.found] == ["16-bit overflow or NaN"]


def test_the_models_name_is_the_one_without_a_task() -> None:
    names = ("other", "EmbeddingGemma-300m:clustering", "EmbeddingGemma-300m", "google/embeddinggemma-2")
    listed = {"data": [{"id": name} for name in names]}
    with answering({"/v1/models": (200, listed)}) as url:
        client = Client(url, "openai")
        second = Client(url, "openai", generation=2)
    assert client.model == "EmbeddingGemma-300m" and client.tasks == {"clustering"}
    assert second.model == "google/embeddinggemma-2" and not second.tasks


def test_openais_vectors_are_in_the_order_of_their_index() -> None:
    data = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}]
    with answering({"/v1/models": (404, {}), "/v1/embeddings": (200, {"data": data})}) as url:
        assert Client(url, "openai").ask(["a", "b"]).vectors.tolist() == [[1, 0], [0, 1]]


def test_the_documentation_has_every_fault() -> None:
    rows = [f"| {cell(each.name)} | {cell(each.effect)} | {cell(each.remedy)} |" for each in FAULTS.values()]
    assert "\n|---|---|---|\n" + "\n".join(rows) + "\n\n" in (ROOT / "docs" / "verifying.md").read_text(
        encoding="utf-8"
    )


def test_the_page_shows_what_markdown_would_hide() -> None:
    judgement = Judgement()
    judgement.find("<eos> dropped", "HTTP 500: <html>\n| failed")
    judgement.steps.append(("a | b", 1, "0", ""))
    text = page(judgement, {})
    assert "**Wrong**: `<eos>` dropped." in text and "- **`<eos>` dropped**: the last token" in text
    assert "HTTP 500: `<html>` | failed" in text and "| a \\| b | 1 | 0 |  |" in text


def test_the_page_has_all_parts() -> None:
    judgement = Judgement()
    assert "**Right**" in page(judgement, {"server": "there"}) and judgement.is_right
    judgement.find("causal mask", "Figures")
    judgement.find("causal mask", "Again")
    text = page(judgement, {"server": "there"})
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Are these vectors EmbeddingGemma's?", "## Asked", "## Verdict", "## Answered",
    ]  # fmt: skip
    fault = FAULTS["causal mask"]
    assert f"- **causal mask**: {fault.effect}. Figures. Remedy: {fault.remedy}." in text and "Again" not in text


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--url", "http://127.0.0.1:9"), 2, "refused; is a server running there?"),
        (("--url", "http://127.0.0.1:9", "--api", "mine"), 2, "invalid choice: 'mine'"),
        (("--url", "http://127.0.0.1:9", "--api", "cohere", "--prompts", "client"), 2, "names a task with every text"),
    ],
)
def test_the_command_says_what_is_wrong(options: tuple[str, ...], code: int, message: str) -> None:
    command = [sys.executable, "-m", "scripts.verify", "--weights", "small", *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == code and message in result.stderr and "Traceback" not in result.stderr
