"""S3 on this machine (moto's server), which answers with failures when a test wants it to."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

# Without attempts of botocore, which wait for seconds between them, those of s3fs remain.
KEYS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}
Start = Callable[..., Any]


class FailingS3:
    """The server. Requests of `method` take one of the `failures` after another, None for an answer as it should be.

    With `path` only those to such an end of a path do. `asked` lists all requests.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.url = f"http://127.0.0.1:{self._server.port}"
        self.method, self.failures = "GET", list[str | None]()
        self.path, self.asked = "", list[str]()
        self.requests = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __call__(self, environment: dict[str, Any], start: Start) -> Iterable[bytes]:
        """Answer a request: "503" refuses, "slow" waits, "cut" sends half of what it announced."""
        failure, method, path = None, environment["REQUEST_METHOD"], environment["PATH_INFO"]
        self.asked.append(f"{method} {path}")
        if method == self.method and path.endswith(self.path):
            with self._lock:
                self.requests += 1
                failure = self.failures.pop(0) if self.failures else None
        if failure == "503":
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            start("503 Slow Down", [("Content-Type", "application/xml")])
            return [b"<Error><Code>SlowDown</Code></Error>"]
        if failure == "slow":
            time.sleep(0.3)
        answer: Iterable[bytes] = self._app(environment, start)
        return _cut(answer) if failure == "cut" else answer

    def close(self) -> None:
        self._server.shutdown()


def _cut(answer: Iterable[bytes]) -> Iterator[bytes]:
    content = b"".join(answer)
    yield content[: len(content) // 2]
    raise ConnectionResetError("on purpose")


@contextmanager
def failing_s3() -> Iterator[FailingS3]:
    """Run the server."""
    server = FailingS3()
    try:
        yield server
    finally:
        server.close()
