"""Run the container's server on this machine, without Docker: coglet, the one in Cog's wheel.

    python -m scripts.server --weights small --port 5000

It runs until SIGTERM, SIGINT or SIGHUP, lets accepted requests finish, and is started again when its worker dies.
`running_server` is a server for the length of a with block.
"""

import argparse
import ast
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

import settings
from scripts import probe
from scripts.make_openapi import OPENAPI, PREDICT, ROOT, concurrency, find_run

logger = logging.getLogger(__name__)

SETUP_TIMEOUT_S = 900
# Cog's server waits for accepted requests without end.
STOP_TIMEOUT_S = 90
WATCH_EVERY_S = 1.0
# What Cog's server puts before the words of the exception that ended the setup.
SETUP_FAILED = re.compile(r"^((worker )?[Ss]etup failed( \(slot [\w-]+\))?: )+(\w+Error: )?", re.MULTILINE)
# Cog's server in a process that is sent SIGTERM, as if by us, when the thread that started it ends.
LAUNCH = """
import ctypes, runpy, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
runpy.run_module("cog.server.http", run_name="__main__", alter_sys=True)
"""


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
    options: Sequence[str] = ("--host", "127.0.0.1"),
    settings: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start the server as Cog's image does, in a session of its own, and return at once.

    It logs to the file `log`, if given; `settings` are further environment variables, `options` further arguments.
    """
    _provide_schema()
    run = find_run(ast.parse(PREDICT.read_text(encoding="utf-8")))
    config = yaml.safe_load((ROOT / "cog.yaml").read_text(encoding="utf-8"))
    environment = dict(line.split("=", 1) for line in config["environment"])
    environment |= {"COG_PREDICT_TYPE_STUB": config["run"], "COG_MAX_CONCURRENCY": str(concurrency(run))}
    environment |= os.environ
    environment |= {
        "PORT": str(port),
        # coglet starts its worker as plain `python`, which must be this one.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    if weights is not None:
        environment["WEIGHTS"] = weights
    if not environment.get("API_HOST", "").strip():
        environment["API_HOST"] = options[options.index("--host") + 1].strip("[]")
    environment |= settings or {}
    with log.open("wb") if log else nullcontext() as output:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCH, *options],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
        )


def _provide_schema() -> None:
    """Put openapi.json where coglet looks for it, in one step, as another server may start here at the same time."""
    folder = ROOT / ".cog"
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            Path(shutil.copy(OPENAPI, temporary)).replace(folder / "openapi_schema.json")
    except OSError as error:
        raise ServerError(
            f"{folder}: it cannot be written ({error.strerror}), and Cog's server reads its schema there"
        ) from None


@contextmanager
def running_server(
    weights: str | None, port: int | None = None, settings: Mapping[str, str] | None = None, options: Sequence[str] = ()
) -> Iterator[Server]:
    """Start a server on `port` (None for any free one), wait until it is ready, and stop it at the end of the block.

    `settings` and `options` are those of `start`. Raises ServerError with the server's log when its setup fails.
    """
    with tempfile.TemporaryDirectory(prefix="embeddinggemma-server-") as folder:
        log = Path(folder) / "log"
        port = port or free_port()
        process = start(port, weights, log, ("--host", "127.0.0.1", *options), settings)
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            _wait_until_ready(server)
            yield server
        finally:
            stop(process)


def address_of(host: str, port: int) -> str:
    """Return the IP address of a host, as Cog's server takes no names. Raises ServerError where none can listen."""
    try:
        if port not in settings.PORTS:
            raise OverflowError(f"a port is {settings.PORTS_IN_WORDS}")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listener:
            return str(listener.getsockname()[0])
    except (OSError, OverflowError, UnicodeError) as error:
        reason = (error.strerror or "").partition(" (while")[0] if isinstance(error, OSError) else error
        raise ServerError(
            f"port {port} of {host[:80]} cannot be listened on ({reason}); choose a free port with PORT or --port, and "
            "an address of this machine with --host"
        ) from None


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
    """Return what a failed setup said, without what Cog's server puts before it."""
    return SETUP_FAILED.sub("", str((health.get("setup") or {}).get("logs", "")).strip())


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:])


def stop(process: subprocess.Popen[bytes], signals: Sequence[int] = ()) -> None:
    """End a server when its accepted requests are done; at once after STOP_TIMEOUT_S, or at a second signal."""
    deadline = time.monotonic() + STOP_TIMEOUT_S
    process.terminate()
    while process.poll() is None and time.monotonic() < deadline and len(signals) < 2:
        time.sleep(0.05)
    _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a server and its worker, which may outlive it, at once."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def serve(port: int, weights: str | None, host: str, options: Sequence[str] = ()) -> int:
    """Run a server until SIGTERM, SIGINT or SIGHUP, and start it again when it is lost; return the exit status.

    `options` are those of `start` but for the host. A server that was never ready is not started again: 1. Raises
    ServerError when the address cannot be listened on.
    """
    address = address_of(host, port)
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.append(received))
    was_ready = False
    while True:
        process = start(port, weights, options=("--host", _in_url(address), *options))
        was_ready |= _watch(process, f"http://{_in_url(reached)}:{port}", signals)
        if signals:
            stop(process, signals)
            return 0
        _kill(process)
        if not was_ready:
            return 1
        logger.error("the server is lost; starting it again")


def _in_url(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _watch(process: subprocess.Popen[bytes], url: str, signals: Sequence[int]) -> bool:
    """Wait for a signal or until the server is lost; return whether it was ready."""
    was_ready = False
    while not signals and process.poll() is None:
        health = probe.health(url)
        status = health["status"]
        was_ready |= status in (*probe.SERVES, "UNHEALTHY")
        if status not in probe.LIVES and probe.is_lost(url):
            if status == "SETUP_FAILED":
                logger.error("the server's setup failed: %s", setup_logs(health))
            break
        time.sleep(WATCH_EVERY_S)
    return was_ready


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--weights", default=os.environ.get("WEIGHTS"), help="directory, small, or repository[@revision]"
    )
    parser.add_argument("--port", type=int, help="port to listen on (default: PORT, or 5000)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--upload-url", help="where to PUT the files that predictions answer with")
    args = parser.parse_args()
    try:
        port = settings.port("PORT", 5000) if args.port is None else args.port
        options = ["--upload-url", args.upload_url] if args.upload_url else []
        sys.exit(serve(port, args.weights, args.host, options))
    except (ServerError, settings.SettingError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
