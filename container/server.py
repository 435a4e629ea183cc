"""Run the container's server on this machine without Docker: Cog's own server, coglet, behind our front.

    python -m scripts.server --weights small --port 5000

It runs until SIGTERM, SIGINT or SIGHUP, lets accepted requests finish, and restarts a server that is lost. It is for an
image whose port others reach. `running_server` runs a server for the length of a with block.
"""

import argparse
import gc
import logging
import re
import resource
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import settings
from container import coglet, probe, supervisor
from container.coglet import start as start  # the tests start it without the front
from container.front import Front
from container.rules import read_rules
from container.supervisor import ServerError as ServerError
from container.supervisor import stop as stop
from settings.listening import listen

logger = logging.getLogger("container.server")

SETUP_TIMEOUT_S = 900
# What Cog's server puts before the message of the exception that ended the setup.
SETUP_FAILED = re.compile(r"^((worker )?[Ss]etup failed( \(slot [\w-]+\))?: )+(\w+Error: )?", re.MULTILINE)
# Files that the server opens besides its connections.
OTHER_FILES = 128


@dataclass(frozen=True, slots=True)
class Server:
    """A running server's URL, its process and its log file."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def predict(self, inputs: Mapping[str, Any], timeout_s: float = 600) -> dict[str, Any]:
        """Return the whole answer to a prediction, failed or not. Raises httpx.HTTPStatusError on 4xx and 5xx."""
        import httpx  # an image runs this module without httpx

        answer = httpx.post(f"{self.url}/predictions", json={"input": dict(inputs)}, timeout=timeout_s)
        answer.raise_for_status()
        return dict(answer.json())


@contextmanager
def running_server(
    weights: str | None,
    port: int | None = None,
    settings: Mapping[str, str] | None = None,
    options: Sequence[str] = (),
    front: bool = True,
) -> Iterator[Server]:
    """Run what `make serve` runs for the length of a with block, which begins when it is ready. Raises ServerError.

    Without `front` it is Cog's server alone, which nobody restarts.
    """
    with tempfile.TemporaryDirectory(prefix="embeddinggemma-server-") as folder:
        log = Path(folder) / "log"
        port = port or free_port()
        arguments = ("--host", "127.0.0.1", *options)
        if front:
            environment = coglet.environment_of(weights, settings) | {"PORT": str(port)}
            process = supervisor.launch("container.server", arguments, environment, log=log)
        else:
            process = start(port, weights, log, arguments, settings)
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            stop(process, timeout_s=supervisor.STOP_TIMEOUT_S + 10)


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + SETUP_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            raise ServerError(f"the server stopped with exit code {server.process.returncode}:\n{_tail(server.log)}")
        health = probe.health(server.url)
        if health["status"] == "READY":
            return
        if health["status"] == "SETUP_FAILED":
            raise ServerError(f"the server's setup failed:\n{setup_logs(health)}")
        time.sleep(0.05)
    raise ServerError(f"the server was not ready within {SETUP_TIMEOUT_S} s:\n{_tail(server.log)}")


def setup_logs(health: Mapping[str, Any]) -> str:
    """Return the log of a failed setup without the prefix of Cog's server."""
    return SETUP_FAILED.sub("", str((health.get("setup") or {}).get("logs", "")).strip())


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def serve(args: argparse.Namespace) -> int:
    """Run a server until a signal, restart it when it is lost, and return the exit status.

    Raises ServerError, and SettingError for an address that cannot be listened on.
    """
    listener = listen(args.host, args.port)
    _raise_file_limit()
    rules = read_rules(coglet.schema())
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES) // 2
    signals = supervisor.catch_signals()
    gc.freeze()  # the garbage collector need not look through the modules again
    front = Front(listener, replace(rules, connections=max(1, min(rules.connections, most))))
    given = {"API_HOST": settings.text("API_HOST") or str(listener.getsockname()[0])}
    options = ["--upload-url", args.upload_url] if args.upload_url else []
    url = ""

    def begin() -> subprocess.Popen[bytes]:
        nonlocal url
        own, own_port = coglet.free_address()  # another program may have taken the last one
        front.pass_to(own, own_port)
        url = f"http://{own}:{own_port}"
        return start(own_port, args.weights, options=("--host", own, *options), settings=given)

    def end(process: subprocess.Popen[bytes]) -> None:
        front.drain()
        supervisor.wait_until(lambda: not front.is_busy, signals, supervisor.STOP_TIMEOUT_S)
        stop(process, signals)

    try:
        return supervisor.keep(begin, lambda: state_of(front, url), end, signals)
    finally:
        front.close()


def state_of(front: Front, url: str) -> str:
    """Return the state that the server's health check tells, and log why its setup failed.

    Raises ServerError when the front has ended.
    """
    if not front.is_alive:
        raise ServerError("the front has ended, and nobody reaches the server without it")
    health = probe.health(url)
    if health["status"] == "SETUP_FAILED":
        logger.error("the server's setup failed: %s", setup_logs(health))
        return supervisor.LOST
    states = {probe.NO_ANSWER: supervisor.SILENT, "STARTING": supervisor.STARTS}
    states |= dict.fromkeys(probe.SERVES, supervisor.SERVES)
    has_served = (health.get("setup") or {}).get("status") == "succeeded"  # also between two looks
    return states.get(health["status"], supervisor.UNWELL if has_served else supervisor.BAD)


def _raise_file_limit() -> None:
    """Raise the limit of open files, for this process and its children, as far as it goes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _http(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("it is no URL; give one that begins with http:// or https://")
    return url


def main() -> None:
    parser = supervisor.parser_of(__doc__ or "", 5000)
    parser.add_argument(
        "--upload-url", type=_http, metavar="URL", help="where to PUT the files that predictions answer with"
    )
    supervisor.run(parser, serve)


if __name__ == "__main__":
    main()
