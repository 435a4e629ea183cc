"""A web server on this machine that serves a directory as the Hugging Face hub and as plain files, and misbehaves.

`/api/models/...` and `/.../resolve/REVISION/FILE` are the hub's; any other path is a file of the directory.
"""

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CHUNK = 1 << 15


@dataclass
class Faults:
    """What goes wrong. Each status, cut, flip and stall is used up by one request; the others hold for all.

    Only bodies of at least `FAULTY_BYTES` are cut, flipped, stalled or of another length.
    """

    refusal: tuple[int, str] | None = None
    """HTTP status and the hub's error code in answer to every request."""
    statuses: list[int] = field(default_factory=list)
    """HTTP statuses of the next requests."""
    cuts: list[float] = field(default_factory=list)
    """Fractions of the file after which the connection is cut."""
    flips: int = 0
    """Bodies in which a bit is flipped."""
    extra: int = 0
    """Bytes by which every body is longer, or shorter if negative, than the file; Content-Length says so too."""
    stalls: int = 0
    """Bodies that stop in the middle with the connection open."""
    redirects: bool = False
    """Whether every file is redirected to another address."""
    pause_s: float = 0
    """Time between two chunks of a body."""


FAULTY_BYTES = 50_000


class Hub(ThreadingHTTPServer):
    """The server: `directory` is what it serves, `requests` and `bytes_sent` what it was asked for and sent."""

    daemon_threads = True

    def __init__(self, directory: Path, faults: Faults) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory, self.faults = directory, faults
        self.requests: list[str] = []
        self.bytes_sent = 0
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Print nothing: clients are killed on purpose."""

    def downloads(self, name: str) -> int:
        """Return how often a file was asked for."""
        return sum(request.startswith("GET") and request.endswith(name) for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        faults = self.server.faults
        self.server.requests.append(f"{self.command} {self.path}")
        if faults.refusal is not None:
            status, code = faults.refusal
            return self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": "refused"})
        if faults.statuses:
            return self._answer(faults.statuses.pop(0), b"{}", {})
        if self.path.startswith("/api/models/"):
            return self._answer(200, json.dumps(self._model_info()).encode(), {})
        if faults.redirects and "/elsewhere/" not in self.path:
            return self._answer(302, b"", {"Location": f"/elsewhere{self.path}"})
        path = self.path.partition("?")[0].removeprefix("/elsewhere")
        name = re.sub(r"^.*/resolve/[^/]+/", "", path).lstrip("/")
        return self._send_file(self.server.directory / name)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _model_info(self) -> dict[str, object]:
        directory = self.server.directory
        names = [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()]
        return {"id": "some/model", "sha": COMMIT, "siblings": [self._sibling(name) for name in names]}

    def _sibling(self, name: str) -> dict[str, object]:
        content = (self.server.directory / name).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        sibling: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": blob}
        if name.endswith(".safetensors"):
            sha256 = hashlib.sha256(content).hexdigest()
            sibling["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 100}
        return sibling

    def _send_file(self, path: Path) -> None:
        if not path.is_file():
            return self._answer(404, b"", {})
        content, faults = path.read_bytes(), self.server.faults
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        is_faulty = len(content) >= FAULTY_BYTES and self.command == "GET"
        if len(content) >= FAULTY_BYTES and faults.extra:
            content = content[: faults.extra] if faults.extra < 0 else content + b"x" * faults.extra
        if is_faulty and faults.flips:
            faults.flips -= 1
            content = content[:-1] + bytes([content[-1] ^ 1])
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if start >= len(content):
                return self._answer(416, b"", {})
        end = len(content)
        if is_faulty and faults.cuts:
            end = int(len(content) * faults.cuts.pop(0))
        stalls = is_faulty and faults.stalls > 0
        if stalls:
            faults.stalls -= 1
            end = (start + len(content)) // 2
        self._answer(status, content[start:end], headers, length=len(content) - start)
        if stalls:
            self.server.closing.wait(10)

    def _answer(self, status: int, body: bytes, headers: dict[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        for i in range(0, len(body), CHUNK):
            self.wfile.write(body[i : i + CHUNK])
            self.server.bytes_sent += len(body[i : i + CHUNK])
            time.sleep(self.server.faults.pause_s)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing: the tests look at `requests`."""


@contextmanager
def running_hub(directory: Path, faults: Faults | None = None) -> Iterator[Hub]:
    """Serve `directory`, with `faults`, for the length of a with block."""
    hub = Hub(directory, faults or Faults())
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.closing.set()
        hub.shutdown()
        hub.server_close()
