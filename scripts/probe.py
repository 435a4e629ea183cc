"""Say whether a server can serve, for the health probes of a container: Cog answers 200 whatever its status is.

    python scripts/probe.py             # exit status 0 if it takes predictions, 1 while it sets up or is unwell
    python scripts/probe.py --live      # exit status 1 only if it must be started again
    python scripts/probe.py --end 1     # if it says so, end process 1: whatever runs the container starts it again

The image has this file; it needs nothing but Python.
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

# The server is on this machine, whatever proxy the environment names.
DIRECTLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SERVES = ("READY", "BUSY")
LIVES = (*SERVES, "STARTING")
NO_ANSWER = "NO ANSWER"
# Cog gives the predictor's own check five seconds.
ANSWER_TIMEOUT_S = 8.0
# One bad answer may be a moment's load. A server is ended after as many as this in a row.
BAD_ANSWERS = 3
PAUSE_S = 1.0


def health(url: str) -> dict[str, Any]:
    """Return the server's health check, of which only the `status` NO_ANSWER where there is none."""
    try:
        with DIRECTLY.open(f"{url}/health-check", timeout=ANSWER_TIMEOUT_S) as answer:
            return dict(json.load(answer))
    except (OSError, HTTPException, ValueError, TypeError):
        return {"status": NO_ANSWER}


def status(url: str) -> str:
    """Return the status in the server's health check, NO_ANSWER if there is none."""
    return str(health(url).get("status", NO_ANSWER))


def is_lost(url: str) -> bool:
    """Return whether the server will not serve again: BAD_ANSWERS in a row, PAUSE_S apart.

    One that does not answer begins, or ends as it was told to and finishes its last requests.
    """
    for _ in range(BAD_ANSWERS):
        if status(url) in (*LIVES, NO_ANSWER):
            return False
        time.sleep(PAUSE_S)
    return True


def end(pid: int) -> None:
    """End a process, and at once what it started: a hanging worker would keep Cog's server waiting for its answers."""
    for children in Path(f"/proc/{pid}/task").glob("*/children"):  # of each of its threads
        with suppress(OSError):  # just gone
            for child in children.read_text(encoding="ascii").split():
                os.kill(int(child), signal.SIGKILL)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", default=f"http://127.0.0.1:{os.environ.get('PORT', '').strip() or 5000}")
    parser.add_argument("--live", action="store_true", help="only fail if the server must be started again")
    parser.add_argument("--end", type=int, metavar="PID", help="if it says so, end this process")
    args = parser.parse_args()
    if args.end is not None and not 0 < args.end < 1 << 31:  # others stand for groups of processes
        parser.error(f"--end {args.end}: give the number of a process, such as 1")
    if args.end is not None and is_lost(args.url):
        try:
            end(args.end)
        except PermissionError:
            sys.exit(f"--end {args.end}: this user may not end that process; run the probe as its user")
    found = status(args.url)
    sys.stdout.write(f"{found}\n")
    sys.exit(found not in (LIVES if args.live else SERVES))


if __name__ == "__main__":
    main()
