"""Run the container's server on this machine, without Docker: coglet, the one in Cog's wheel.

    python -m scripts.server --weights small --port 5000

`running_server` does the same for the length of a with block.
"""

import argparse
import ast
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from scripts.make_openapi import OPENAPI, PREDICT, ROOT, concurrency, find_run

logger = logging.getLogger(__name__)

SETUP_TIMEOUT_S = 900
STOP_TIMEOUT_S = 30


class ServerError(RuntimeError):
    """The server did not become ready; the message ends with what it logged."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server's URL, its process and its log file."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def predict(self, inputs: Mapping[str, Any], timeout_s: float = 600) -> dict[str, Any]:
        """Return the whole answer to one prediction, failed or not. Raises httpx.HTTPStatusError on 4xx, 5xx."""
        answer = httpx.post(f"{self.url}/predictions", json={"input": dict(inputs)}, timeout=timeout_s)
        answer.raise_for_status()
        return dict(answer.json())


def start(
    port: int,
    weights: str | None,
    log: Path | None = None,
    host: str = "127.0.0.1",
    settings: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the server's process as Cog's image does and return at once.

    It logs to the file `log`, if given; `settings` are further environment variables.
    """
    schema = ROOT / ".cog" / "openapi_schema.json"  # where coglet looks for it
    schema.parent.mkdir(exist_ok=True)
    shutil.copyfile(OPENAPI, schema)
    run = find_run(ast.parse(PREDICT.read_text(encoding="utf-8")))
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    environment = dict(line.split("=", 1) for line in config["environment"]) | os.environ
    environment |= {
        "COG_PREDICT_TYPE_STUB": config["run"],
        "COG_MAX_CONCURRENCY": str(concurrency(run)),
        "PORT": str(port),
        # coglet starts its worker as plain `python`, which must be this one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if weights is not None:
        environment["WEIGHTS"] = weights
    environment |= settings or {}
    command = [sys.executable, "-m", "cog.server.http", "--host", host]
    if log is None:
        return subprocess.Popen(command, cwd=ROOT, env=environment)
    with log.open("wb") as output:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


@contextmanager
def running_server(
    weights: str | None, port: int | None = None, settings: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start a server on `port` (None for any free one), wait until it is ready, and stop it at the end of the block.

    `settings` are further environment variables. Raises ServerError with the server's log when its setup fails.
    """
    with tempfile.TemporaryDirectory(prefix="embeddinggemma-server-") as folder:
        log = Path(folder) / "log"
        port = port or _free_port()
        process = start(port, weights, log, settings=settings)
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            _stop(process)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + SETUP_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerError(f"the server stopped with exit code {server.process.returncode}:\n{_tail(server.log)}")
        try:
            health = httpx.get(f"{server.url}/health-check", timeout=5).json()
        except httpx.TransportError:
            health = {"status": "STARTING"}
        if health["status"] == "READY":
            return
        if health["status"] == "SETUP_FAILED":
            raise ServerError(f"the server's setup failed:\n{health['setup']['logs'].strip()}")
        time.sleep(0.05)
    raise ServerError(f"the server was not ready within {SETUP_TIMEOUT_S} s:\n{_tail(server.log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--weights", default=os.environ.get("WEIGHTS"), help="directory, small, or repository[@revision]"
    )
    parser.add_argument("--port", type=int, default=int(os.environ.get("PORT", "5000")))
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    args = parser.parse_args()
    process = start(args.port, args.weights, host=args.host)
    try:
        sys.exit(process.wait())
    except KeyboardInterrupt:
        _stop(process)


if __name__ == "__main__":
    main()
