"""Keeping a server running: restart it when it is lost, and end it on a signal."""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import NoReturn

import settings
from container import probe
from settings import logs

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
# A server that is told to end waits for accepted requests without limit; we end it after this time.
STOP_TIMEOUT_S = 90
WATCH_EVERY_S = 1.0
SILENT_S = 90.0
# Runs a module in a process that gets SIGTERM when the thread that started it ends.
LAUNCH = """
import ctypes, runpy, signal, sys
PR_SET_PDEATHSIG = 1
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""
# The states that a look at a server finds; UNWELL is BAD of a server that served. A server is lost at the first LOST,
# at probe.BAD_ANSWERS of BAD or UNWELL in a row, or when it has served and then been SILENT for SILENT_S.
SERVES, STARTS, BAD, UNWELL, LOST, SILENT = "serves", "starts", "bad", "unwell", "lost", "silent"


class ServerError(RuntimeError):
    """A server that cannot run: why, with the remedy or the end of its log."""


def parser_of(doc: str, port: int) -> argparse.ArgumentParser:
    """Return a parser of the arguments that all serving commands take; `doc` is the docstring, `port` the default."""
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument(
        "--weights", default=os.environ.get("WEIGHTS"), help="directory, small, or repository[@revision]"
    )
    parser.add_argument("--port", type=int, help=f"port to listen on (default: PORT, or {port})")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.set_defaults(default_port=port)
    return parser


def run(parser: argparse.ArgumentParser, serve: Callable[[argparse.Namespace], int]) -> NoReturn:
    """Set up the log, call `serve` with the arguments, and exit with the status it returns or the problem it raises."""
    args = parser.parse_args()
    try:
        logs.of_server()
        if args.port is None:
            args.port = settings.port("PORT", args.default_port)
        sys.exit(serve(args))
    except (ServerError, settings.SettingError) as error:
        sys.exit(str(error))


def launch(
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    folder: Path = ROOT,
    log: Path | None = None,
    listener: socket.socket | None = None,
) -> subprocess.Popen[bytes]:
    """Start a module in a session of its own, which ends with this thread; return at once."""
    with log.open("wb") if log else nullcontext() as output:
        return subprocess.Popen(
            [sys.executable, "-c", LAUNCH, module, *arguments],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
            pass_fds=[listener.fileno()] if listener else [],
        )


def catch_signals() -> list[int]:
    """Append each SIGTERM, SIGINT and SIGHUP from now on to the list returned."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _: signals.append(received))
    return signals


def keep(
    start: Callable[[], subprocess.Popen[bytes]],
    look: Callable[[], str],
    end: Callable[[subprocess.Popen[bytes]], None],
    signals: Sequence[int],
) -> int:
    """Run a server until a signal, restart it when it is lost, and return the exit status.

    `look` returns the state that it finds the server in. A server that never served is not restarted.
    """
    was_ready = False
    while True:
        process = start()
        try:
            was_ready |= _watch(process, look, signals)
            if signals:
                end(process)
                return 0
        finally:
            kill(process)
        if not was_ready:
            return 1
        logger.error("the server is lost; starting it again")


def _watch(process: subprocess.Popen[bytes], look: Callable[[], str], signals: Sequence[int]) -> bool:
    """Wait for a signal or until the server is lost; return whether it was ready."""
    was_ready, bad, heard = False, 0, time.monotonic()
    while not signals and process.poll() is None:
        state = look()
        if process.poll() is not None:  # another server on this port answered
            break
        was_ready |= state in (SERVES, UNWELL)
        bad = bad + 1 if state in (BAD, UNWELL) else 0
        heard = heard if state == SILENT else time.monotonic()
        is_silent = was_ready and time.monotonic() - heard > SILENT_S
        if state == LOST or bad >= probe.BAD_ANSWERS or is_silent:
            break
        time.sleep(WATCH_EVERY_S)
    return was_ready


def stop(process: subprocess.Popen[bytes], signals: Sequence[int] = (), timeout_s: float = STOP_TIMEOUT_S) -> None:
    """End a server when its accepted requests are done, at the latest after the timeout or at a second signal."""
    process.terminate()
    wait_until(lambda: process.poll() is not None, signals, timeout_s)
    kill(process)


def wait_until(holds: Callable[[], bool], signals: Sequence[int], timeout_s: float) -> None:
    """Wait until `holds()`, the timeout or a second signal."""
    deadline = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < deadline and len(signals) < 2:
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a server and its worker, which might outlive it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
