"""A Hugging Face hub on this machine, for the hub's own client to talk to: it serves one directory, or one refusal."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(ThreadingHTTPServer):
    directory: Path
    refusal: tuple[int, str] | None
    requests: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Hub

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        if self.server.refusal is not None:
            status, code = self.server.refusal
            return self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "as told"})
        if self.path.startswith("/api/models/"):
            files = [str(p.relative_to(self.server.directory)) for p in self.server.directory.rglob("*") if p.is_file()]
            if "/tree/" in self.path:
                return self._answer(200, json.dumps([self._tree_entry(name) for name in files]).encode())
            about = {"id": "some/model", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
            return self._answer(200, json.dumps(about).encode())
        return self._answer(200, *self._file(self.path.split("/resolve/")[1].split("/", 1)[1]))

    def do_HEAD(self) -> None:
        self.do_GET()

    def _tree_entry(self, name: str) -> dict[str, object]:
        content, headers = self._file(name)
        return {"type": "file", "path": name, "size": len(content), "oid": headers["ETag"].strip('"')}

    def _file(self, name: str) -> tuple[bytes, dict[str, str]]:
        content = (self.server.directory / name).read_bytes()
        return content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests look at `requests`."""


@contextmanager
def running_hub(directory: Path, refusal: tuple[int, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve `directory` as every repository, or answer `refusal` (status, hub error code); its URL and its requests."""
    hub = _Hub(("127.0.0.1", 0), _Handler)
    hub.directory, hub.refusal, hub.requests = directory, refusal, []
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{hub.server_address[1]}", hub.requests
    finally:
        hub.shutdown()
        hub.server_close()
