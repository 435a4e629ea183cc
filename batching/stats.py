"""What the batcher has done: since its start, for metrics, and in the last minute, for the log."""

import time
from bisect import bisect_left
from dataclasses import dataclass, field, replace

PERIOD_S = 60.0
DURATIONS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
TOKENS = (32, 128, 512, 2048, 8192, 32768, 131072)


@dataclass
class Histogram:
    """How many values fall into each bucket up to the ascending `bounds`, or beyond the last, and their sum."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        """Count a value in its bucket."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass
class Totals:
    """Counters since the start. Every text of every request counts, cached or computed."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    cache_hits: int = 0
    truncated: int = 0
    prompted: int = 0
    refused: int = 0
    batches: int = 0
    computed_texts: int = 0
    computed_tokens: int = 0
    queue_s: Histogram = field(default_factory=lambda: Histogram(DURATIONS_S))
    compute_s: Histogram = field(default_factory=lambda: Histogram(DURATIONS_S))
    batch_texts: Histogram = field(default_factory=lambda: Histogram(TEXTS))
    batch_tokens: Histogram = field(default_factory=lambda: Histogram(TOKENS))


class Stats:
    """Counts, and writes a line each minute. A minute starts with a request, so an idle server logs nothing."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._minute_started: float | None = None
        self._before = Totals()

    def count_request(self, texts: int, tokens: int) -> None:
        """Count a request that was admitted."""
        self._begin_minute()
        self.totals.requests += 1
        self.totals.texts += texts
        self.totals.tokens += tokens

    def count_refused(self) -> None:
        """Count a request that was refused as busy."""
        self._begin_minute()
        self.totals.refused += 1

    def count_batch(self, texts: int, tokens: int) -> None:
        """Count a batch that was computed."""
        self.totals.batches += 1
        self.totals.computed_texts += texts
        self.totals.computed_tokens += tokens
        self.totals.batch_texts.observe(texts)
        self.totals.batch_tokens.observe(tokens)

    def count_answer(self, queue_s: float, compute_s: float) -> None:
        """Count how long a request waited, and how long it was computed."""
        self.totals.queue_s.observe(queue_s)
        self.totals.compute_s.observe(compute_s)

    def due_in_s(self) -> float | None:
        """Return the seconds until the line is due; None before the first request of its minute."""
        started = self._minute_started
        return None if started is None else max(0.0, started + PERIOD_S - time.monotonic())

    def line(self) -> str:
        """Return the line for the log, and end the minute."""
        seconds = time.monotonic() - (self._minute_started or time.monotonic())
        now, before = self.totals, self._before
        line = (
            f"{now.requests - before.requests:,} requests with {now.texts - before.texts:,} texts in {seconds:.0f} s: "
            f"{now.cache_hits - before.cache_hits:,} from the cache, "
            f"{now.computed_texts - before.computed_texts:,} computed "
            f"({now.computed_tokens - before.computed_tokens:,} tokens in {now.batches - before.batches:,} batches); "
            f"{now.refused - before.refused:,} refused as busy"
        )
        self._minute_started, self._before = None, replace(now)
        return line

    def _begin_minute(self) -> None:
        self._minute_started = self._minute_started or time.monotonic()
