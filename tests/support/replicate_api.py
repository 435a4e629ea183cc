"""A web server on this machine that answers what clients ask of Replicate's API, from a prediction server."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

MODEL, VERSION = "your-name/your-model", "5c7d5dc6dd8bf75c1acaa8565735e7986bc5b66206b55cca93cb72c9bf15ccaa"


DEPLOYED = "/v1/deployments/your-name/your-deployment/predictions"


class ReplicateApi(ThreadingHTTPServer):
    """The API of a prediction server at `server`."""

    daemon_threads = True

    def __init__(self, server: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.predictions = server


class _Handler(BaseHTTPRequestHandler):
    server: ReplicateApi

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == DEPLOYED or (self.path == "/v1/predictions" and body["version"] == VERSION):
            answer = httpx.post(f"{self.server.predictions}/predictions", json={"input": body["input"]}, timeout=120)
            refused = {"status": "failed", "error": answer.text} if answer.is_error else answer.json()
            return self._answer(201, _prediction(body["input"]) | refused)
        return self._answer(404, {"detail": "there is no such version"})

    def do_GET(self) -> None:
        if re.fullmatch(rf"/v1/models/{MODEL}/versions/{VERSION}", self.path):
            return self._answer(200, self._version())
        if self.path == f"/v1/models/{MODEL}":
            owner, name = MODEL.split("/")
            known = {"url": "", "owner": owner, "name": name, "visibility": "private", "run_count": 0}
            return self._answer(200, known | {"latest_version": self._version()})
        if self.path == DEPLOYED.removesuffix("/predictions"):
            return self._answer(200, {"owner": "your-name", "name": "your-deployment", "current_release": None})
        return self._answer(404, {"detail": "not found"})

    def _version(self) -> dict[str, Any]:
        schema = httpx.get(f"{self.server.predictions}/openapi.json").json()
        return {"id": VERSION, "created_at": "2026-01-01T00:00:00Z", "cog_version": "0.23.1", "openapi_schema": schema}

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _prediction(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what is not the model's part of a prediction."""
    return {"id": "p", "model": MODEL, "version": VERSION, "input": inputs, "urls": {}, "created_at": None}


@contextmanager
def running_replicate_api(server: str) -> Iterator[ReplicateApi]:
    """Serve the API of the prediction server at this URL for the length of a with block."""
    with ReplicateApi(server) as api:
        threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield api
        api.shutdown()
