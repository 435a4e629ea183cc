"""Serve the other APIs, OpenAI's among them, on this machine, without Cog's server.

    python -m scripts.api --weights small --port 8080

It runs until SIGTERM, SIGINT or SIGHUP, lets requests under way finish, and restarts a server that is lost.
"""

import argparse
import json
import os
import subprocess
from http.client import HTTPException
from urllib.error import HTTPError

from container import probe, supervisor
from settings.listening import listen


def serve(args: argparse.Namespace) -> int:
    """Run a server until a signal, restart it when it is lost, and return the exit status. Raises SettingError."""
    listener = listen(args.host, args.port)
    address = str(listener.getsockname()[0])
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    url = f"http://{f'[{reached}]' if ':' in reached else reached}:{args.port}"
    arguments = ["--host", args.host, "--port", str(args.port), "--listener", str(listener.fileno())]
    arguments += [] if args.weights is None else ["--weights", args.weights]
    signals = supervisor.catch_signals()

    def start() -> subprocess.Popen[bytes]:
        return supervisor.launch("container.serve_apis", arguments, os.environ, listener=listener)

    def end(process: subprocess.Popen[bytes]) -> None:
        listener.close()  # the server has its own copy, and closes it when it is told to end
        supervisor.stop(process, signals)

    return supervisor.keep(start, lambda: state_of(url), end, signals)


def state_of(url: str) -> str:
    """Return the state that the server's /live tells."""
    try:
        with probe.DIRECTLY.open(f"{url}/live", timeout=probe.ANSWER_TIMEOUT_S) as answer:
            starts = json.load(answer).get("status") == "starting"
            return supervisor.STARTS if starts else supervisor.SERVES
    except HTTPError:
        return supervisor.BAD
    except (OSError, HTTPException, ValueError):
        return supervisor.SILENT


def main() -> None:
    supervisor.run(supervisor.parser_of(__doc__ or "", 8080), serve)


if __name__ == "__main__":
    main()
