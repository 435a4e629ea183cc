"""Ask a server for single texts and its health for some seconds, and print what each took.

    python -m tests.abuse.singles --seconds 5 COG_URL API_URL

A process of its own, whose clock the attacks in the other do not hold up. Prints JSON: for each of `cog`, `openai` and
`live` the milliseconds of each answer, and the statuses that were no success.
"""

import argparse
import itertools
import json
import sys
import threading
import time
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

PAUSE_S = 0.015
TIMEOUT_S = 60.0


def ask(url: str, method: str, path: str, body: dict[str, Any] | None, until: float) -> dict[str, Any]:
    """Send one request after another until the time has come, each with a text of its own."""
    took_ms: list[float] = []
    failures: list[str] = []
    connection = HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_S)
    for number in itertools.count():
        started = time.perf_counter()
        if started > until:
            break
        content = json.dumps(body).replace("TEXT", f"where is number {number} of {started}?") if body else None
        try:
            connection.request(method, path, content, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            if answer.status != 200 or b'"status":"failed"' in said:
                failures.append(f"{answer.status}: {said[:200].decode(errors='replace')}")
        except OSError as error:
            failures.append(repr(error))
            connection.close()
        took_ms.append((time.perf_counter() - started) * 1000)
        time.sleep(PAUSE_S)
    return {"ms": took_ms, "failures": failures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("cog")
    parser.add_argument("apis")
    args = parser.parse_args()
    asked: dict[str, tuple[str, str, str, dict[str, Any] | None]] = {
        "cog": (args.cog, "POST", "/predictions", {"input": {"text": "TEXT", "task": "retrieval_query"}}),
        "openai": (args.apis, "POST", "/v1/embeddings", {"input": "TEXT", "task": "query"}),
        "live": (args.apis, "GET", "/live", None),
    }
    until = time.perf_counter() + args.seconds
    results: dict[str, dict[str, Any]] = {}

    def run(name: str) -> None:
        results[name] = ask(*asked[name], until)

    threads = [threading.Thread(target=run, args=(name,)) for name in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main()
