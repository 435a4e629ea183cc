"""How long a server keeps others waiting while it answers somebody: the slowest of many requests to /live."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

PAUSE_S = 0.002


class Lag:
    """The longest time that an answer to GET /live took so far, in seconds."""

    def __init__(self) -> None:
        self.longest_s = 0.0


@contextmanager
def lag(address: tuple[str, int]) -> Iterator[Lag]:
    """Ask the server for /live again and again for the length of a with block; the last answer is waited for."""
    found, ended = Lag(), threading.Event()

    def watch() -> None:
        connection = http.client.HTTPConnection(*address, timeout=120)
        while True:
            started = time.perf_counter()
            connection.request("GET", "/live")
            assert connection.getresponse().read()
            found.longest_s = max(found.longest_s, time.perf_counter() - started)
            if ended.wait(PAUSE_S):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join()
