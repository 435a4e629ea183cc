"""What the server did in the last minute, as a line of the log."""

import time
from dataclasses import dataclass

PERIOD_S = 60.0


@dataclass
class Stats:
    """Counters for one line. Their minute starts with its first request, so an idle server logs nothing."""

    started: float | None = None
    requests: int = 0
    texts: int = 0
    cache_hits: int = 0
    refused: int = 0
    batches: int = 0
    computed_texts: int = 0
    computed_tokens: int = 0

    def count_request(self, texts: int, cache_hits: int) -> None:
        """Count a request that was admitted."""
        self.started = self.started or time.monotonic()
        self.requests += 1
        self.texts += texts
        self.cache_hits += cache_hits

    def count_refused(self) -> None:
        """Count a request that was refused as busy."""
        self.started = self.started or time.monotonic()
        self.refused += 1

    def count_batch(self, texts: int, tokens: int) -> None:
        """Count a batch that was computed."""
        self.batches += 1
        self.computed_texts += texts
        self.computed_tokens += tokens

    def due_in_s(self) -> float | None:
        """Return the seconds until the line is due; None before the first request."""
        return None if self.started is None else max(0.0, self.started + PERIOD_S - time.monotonic())

    def line(self) -> str:
        """Return the line for the log."""
        seconds = time.monotonic() - (self.started or time.monotonic())
        return (
            f"{self.requests:,} requests with {self.texts:,} texts in {seconds:.0f} s: "
            f"{self.cache_hits:,} from the cache, {self.computed_texts:,} computed "
            f"({self.computed_tokens:,} tokens in {self.batches:,} batches); {self.refused:,} refused as busy"
        )
