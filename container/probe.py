"""Tell a container's health probes whether a server can serve; Cog itself answers 200 whatever its status.

    python container/probe.py             # exit status 0 if it takes predictions, 1 if it sets up or is unhealthy
    python container/probe.py --live      # exit status 1 only if it must be restarted
    python container/probe.py --end 1     # end process 1 if it is lost, so that the container is restarted

The image has this file; it needs only Python.
"""

import argparse
import json
import os
import signal
import sys
import time
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

# The server is on this machine, so no proxy is used.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SERVES = ("READY", "BUSY")
LIVES = (*SERVES, "STARTING")
NO_ANSWER = "NO ANSWER"
# Cog itself gives the predictor's check five seconds.
ANSWER_TIMEOUT_S = 8.0
# A server is lost after this many bad answers in a row; fewer may be a moment's load.
BAD_ANSWERS = 3
PAUSE_S = 1.0


def health(url: str) -> dict[str, Any]:
    """Return the server's health check, or only the `status` NO_ANSWER."""
    try:
        with DIRECTLY.open(f"{url}/health-check", timeout=ANSWER_TIMEOUT_S) as answer:
            return dict(json.load(answer))
    except (OSError, HTTPException, ValueError, TypeError):
        return {"status": NO_ANSWER}


def status(url: str) -> str:
    """Return the status in the server's health check, NO_ANSWER without one."""
    return str(health(url).get("status", NO_ANSWER))


def is_lost(url: str) -> bool:
    """Return whether the server is lost: BAD_ANSWERS in a row, PAUSE_S apart.

    A server that does not answer is starting, or finishing its last requests.
    """
    for _ in range(BAD_ANSWERS):
        if status(url) in (*LIVES, NO_ANSWER):
            return False
        time.sleep(PAUSE_S)
    return True


def end(pid: int) -> None:
    """End a process, and kill its children: Cog's server would wait for a hanging worker."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):  # of each of its threads
        with suppress(OSError):  # just gone
            for child in children.read_text(encoding="ascii").split():
                os.kill(int(child), signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '').strip() or 5000}")
    parser.add_argument("--live", action="store_true", help="fail only if the server must be restarted")
    parser.add_argument("--end", type=int, metavar="PID", help="end this process if the server is lost")
    args = parser.parse_args()
    if args.end is not None and not 0 < args.end < 1 << 31:  # others stand for groups of processes
        parser.error(f"--end {args.end}: give the number of a process, such as 1")
    if args.end is not None and is_lost(args.url):
        try:
            end(args.end)
        except PermissionError:
            sys.exit(f"--end {args.end}: this user may not end that process; run the probe as its user")
    found = status(args.url)
    with suppress(OSError):  # nobody need read it, as the exit status tells it too
        os.write(1, f"{found}\n".encode())
    sys.exit(found not in (LIVES if args.live else SERVES))


if __name__ == "__main__":
    main()
