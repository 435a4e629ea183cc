"""One server for all clients: Cog's predictions and the apis for other APIs, on one engine.

It runs in the project's environment; the tests run in one that has only the clients.
"""

import base64
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.clients.support import Predict

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("SERVER_PYTHON") or ROOT / ".venv" / "bin" / "python"
READY_TIMEOUT_S = 300
STOP_TIMEOUT_S = 90
# The server is on this machine, whatever proxy the environment names.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Server:
    """The URLs of the predictions and of the apis."""

    predictions: str
    apis: str


@contextmanager
def running_server(**settings: str) -> Iterator[Server]:
    """Run a server on the small checkpoint, with further environment variables, and wait until it is ready."""
    predictions_port, apis_port = free_ports(2)
    server = Server(f"http://127.0.0.1:{predictions_port}", f"http://127.0.0.1:{apis_port}")
    command = [str(PYTHON), "-m", "scripts.server", "--port", str(predictions_port), "--weights", "small"]
    environment = os.environ | {"API_PORT": str(apis_port), "API_KEY": "", "DTYPE": "float32"} | settings
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + READY_TIMEOUT_S
            while not is_ready(server):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    pytest.fail(f"the server did not become ready:\n{log.read().decode(errors='replace')[-5000:]}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait(STOP_TIMEOUT_S)


def free_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def is_ready(server: Server) -> bool:
    """Return whether the server takes predictions, and requests at its apis."""
    try:
        with DIRECTLY.open(f"{server.apis}/ready"), DIRECTLY.open(f"{server.predictions}/health-check") as health:
            return bool(json.load(health)["status"] == "READY")
    except OSError:
        return False


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as running:
        yield running


@pytest.fixture(scope="session")
def apis(server: Server) -> str:
    """The URL that clients are given."""
    return server.apis


@pytest.fixture(scope="session")
def apis_with_key() -> Iterator[str]:
    """The URL of a server whose API_KEY is "secret"."""
    with running_server(API_KEY="secret") as running:
        yield running.apis


@pytest.fixture(scope="session")
def predict(server: Server) -> Predict:
    """What every client's vectors are compared with."""

    def ask(texts: list[str], task: str = "retrieval_document", dimensions: int = 768) -> np.ndarray:
        inputs = {"texts": texts, "task": task, "embedding_dim": dimensions}
        request = urllib.request.Request(
            f"{server.predictions}/predictions",
            json.dumps({"input": inputs}).encode(),
            {"content-type": "application/json"},
        )
        with DIRECTLY.open(request) as answer:
            output: dict[str, Any] = json.load(answer)["output"]
        return np.frombuffer(base64.b64decode(output["embedding"]), "<f4").reshape(output["shape"])

    return ask
