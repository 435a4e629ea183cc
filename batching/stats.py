"""What the server did in the last minute, in one line of the log."""

import time

PERIOD_S = 60.0


class Stats:
    """Counters that start with the first request after a line, so that a server without requests says nothing."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._started: float | None = None
        self._requests = self._texts = self._cache_hits = self._refused = 0
        self._batches = self._computed_texts = self._computed_tokens = 0

    def count_request(self, texts: int, cache_hits: int) -> None:
        """Count a request that was admitted."""
        self._started = self._started or time.monotonic()
        self._requests += 1
        self._texts += texts
        self._cache_hits += cache_hits

    def count_refused(self) -> None:
        """Count a request that was refused as busy."""
        self._started = self._started or time.monotonic()
        self._refused += 1

    def count_batch(self, texts: int, tokens: int) -> None:
        """Count a batch that was computed."""
        self._batches += 1
        self._computed_texts += texts
        self._computed_tokens += tokens

    def left_s(self) -> float | None:
        """Return the seconds until the line is due; None when nothing has been asked for."""
        return None if self._started is None else max(0.0, self._started + PERIOD_S - time.monotonic())

    def line(self) -> str:
        """Return the line and start again."""
        seconds = time.monotonic() - (self._started or time.monotonic())
        line = (
            f"{self._requests:,} requests with {self._texts:,} texts in {seconds:.0f} s: {self._cache_hits:,} from the "
            "cache, "
            f"{self._computed_texts:,} computed ({self._computed_tokens:,} tokens in {self._batches:,} batches); "
            f"{self._refused:,} refused as busy"
        )
        self._start()
        return line
