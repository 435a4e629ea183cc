"""The other APIs in a process of this machine: how each is asked, and the words of its errors."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from container.make_openapi import ROOT
from container.server import free_port
from tests.support.servers import eventually

# The server whose engine does what the file says that the variable FAULT names.
FAULTY = "tests.support.faulty_api"
MODEL = "embeddinggemma-300m"


def _part(text: str) -> dict[str, Any]:
    return {"content": {"parts": [{"text": text}]}}


# The body of a request for these texts, to each operation that takes texts; some take only one.
BODIES: Mapping[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "/v1/embeddings": lambda texts: {"input": texts},
    "/embed": lambda texts: {"inputs": texts},
    "/": lambda texts: {"inputs": texts},
    "/similarity": lambda texts: {"inputs": {"source_sentence": "zero", "sentences": texts}},
    "/tokenize": lambda texts: {"inputs": texts},
    f"/v1/models/{MODEL}:embedContent": lambda texts: _part(" ".join(texts)),
    f"/v1/models/{MODEL}:batchEmbedContents": lambda texts: {"requests": [_part(text) for text in texts]},
    f"/v1beta/models/{MODEL}:embedContent": lambda texts: _part(" ".join(texts)),
    f"/v1beta/models/{MODEL}:batchEmbedContents": lambda texts: {"requests": [_part(text) for text in texts]},
    "/api/embed": lambda texts: {"model": MODEL, "input": texts},
    "/api/embeddings": lambda texts: {"model": MODEL, "prompt": " ".join(texts)},
    "/v2/embed": lambda texts: {"texts": texts},
    "/v1/embed": lambda texts: {"texts": texts},
    "/v1/contextualizedembeddings": lambda texts: {"inputs": [texts]},
    "/weaviate/vectors": lambda texts: {"text": " ".join(texts), "config": {"task_type": "passage"}},
    "/weaviate/passage/vectors": lambda texts: {"text": " ".join(texts)},
    "/weaviate/query/vectors": lambda texts: {"text": " ".join(texts)},
}
# What each API's error consists of.
ERRORS = {
    "OpenAI": {"error": {"message", "type", "param", "code"}},
    "Gemini": {"error": {"code", "message", "status"}},
    "TEI": {"error", "error_type"},
    "Ollama": {"error"},
    "Cohere": {"message"},
    "Voyage": {"detail"},
    "Weaviate": {"error"},
}

# An error begins with the field, in quotes where it is no name, or with the body.
NAMED = re.compile(r"""(?!:)[\w.\[\]]*(['"].*['"])?(, \w+)*: """, re.DOTALL)


def api_of(path: str) -> str:
    """Return the name of the API that has an operation."""
    if path.startswith(("/api/", "/weaviate/")):
        return "Ollama" if path.startswith("/api/") else "Weaviate"
    named = {"/v1/embeddings": "OpenAI", "/v1/embed": "Cohere", "/v2/embed": "Cohere"}
    named["/v1/contextualizedembeddings"] = "Voyage"
    return "Gemini" if ":" in path else named.get(path, "TEI")


def message(path: str, answer: httpx.Response) -> str:
    """Return the words of an error, which must have the shape that the operation's API gives to errors."""
    body, shape = answer.json(), ERRORS[api_of(path)]
    assert answer.headers["content-type"] == "application/json" and body.keys() == set(shape), answer.text
    words = next(iter(body.values())) if len(body) == 1 else body["error"]
    if isinstance(shape, dict):
        assert words.keys() == shape["error"], answer.text
        words = words["message"]
    assert isinstance(words, str) and words, answer.text
    return words


def check(path: str, answer: httpx.Response) -> None:
    """Hold an answer of an operation to what any answer must be: JSON, and words about a field or the body."""
    assert answer.status_code < 500, answer.text
    json.loads(answer.content)
    if answer.status_code != 200:
        words = message(path, answer)
        assert NAMED.match(words), words
        assert "Traceback" not in words and ".py" not in words and len(words) < 1_000, words


@dataclass(frozen=True)
class Running:
    """A running server's URL, its process and its log file."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        """Where to connect a socket to."""
        url = httpx.URL(self.url)
        return url.host, url.port or 80

    def metric(self, name: str) -> float:
        """Return one of its metrics now, summed over all labels."""
        return metric(self.url, name)


def metric(url: str, name: str) -> float:
    """Return a metric of the server at a URL, summed over all labels."""
    families = text_string_to_metric_families(httpx.get(f"{url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == name)


@contextmanager
def running_apis(
    settings: Mapping[str, str] | None = None,
    module: str = "scripts.api",
    until: str = "/ready",
    options: Sequence[str] = ("--host", "127.0.0.1"),
) -> Iterator[Running]:
    """Run a server of the small checkpoint for the length of a with block, which begins when `until` is answered 200.

    `settings` are further environment variables.
    """
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="embeddinggemma-apis-") as folder:
        log = Path(folder) / "log"
        # The tests need the cores, too, and threads that spin while they wait would take them.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"} | dict(settings or {})
        command = [sys.executable, "-m", module, "--weights", "small", "--port", str(port), *options]
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        server = Running(f"http://127.0.0.1:{port}", process, log)
        try:
            eventually(lambda: process.poll() is not None or _answers(server.url + until), "the server answers")
            assert process.poll() is None, log.read_text(encoding="utf-8")
            yield server
        finally:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False
