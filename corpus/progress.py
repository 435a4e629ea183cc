"""How far a run is, for people (a bar) and machines (lines of JSON): rows, tokens a second, the time that is left."""

import logging
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any

from tqdm import tqdm

from corpus.pipeline import RunProgress

logger = logging.getLogger(__name__)

LOG_EVERY_S = 5.0
BAR = "{percentage:3.0f}%|{bar}| {desc}"


class Pace:
    """The speed of a run in the later half of its time and of its rows, as texts get longer and machines slower.

    The time begins with the first block that is computed, since what was done before takes none.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._points = deque([(clock(), RunProgress())])
        self._begin = self._points[0]

    def add(self, progress: RunProgress) -> None:
        """Note how far the run is now."""
        now = self._clock()
        if not progress.tokens:
            self._points.clear()
            self._begin = (now, progress)
        self._points.append((now, progress))
        middle, half = (self._begin[0] + now) / 2, (self._begin[1].read + progress.read) / 2
        while len(self._points) > 2 and (self._points[1][0] <= middle or self._points[1][1].read <= half):
            self._points.popleft()

    def tokens_s(self, whole: bool = False) -> float:
        """Return tokens a second, of late or of the `whole` run."""
        (then, before), (now, last) = self._begin if whole else self._points[0], self._points[-1]
        return (last.tokens - before.tokens) / (now - then) if now > then else 0.0

    def seconds_left(self) -> float | None:
        """Return how long the rest will take, None before anything is computed."""
        (then, before), (now, last) = self._points[0], self._points[-1]
        if not last.tokens or last.read == before.read:
            return None
        return (last.expected - last.read) * (now - then) / (last.read - before.read)


def facts(progress: RunProgress, pace: Pace) -> dict[str, Any]:
    """Return what a machine wants to know of a run, as JSON has it."""
    left = pace.seconds_left()
    return {
        "rows": progress.read,
        "total": progress.expected,
        "total_known": bool(progress.is_known),
        "reused": progress.resumed,
        "tokens": progress.tokens,
        "tokens_s": round(pace.tokens_s()),
        "seconds_left": None if left is None else round(left),
    }


def shown(steps: Generator[RunProgress], as_json: bool) -> tuple[RunProgress, float]:
    """Show a run's progress to its end, and return it, with the tokens a second of the whole run."""
    progress, pace, logged = RunProgress(), Pace(), 0.0
    with closing(steps), tqdm(disable=as_json, dynamic_ncols=True, bar_format=BAR) as bar:
        for progress in steps:
            pace.add(progress)
            if as_json and time.monotonic() - logged >= LOG_EVERY_S:
                logged = time.monotonic()
                logger.info("progress", extra={"facts": facts(progress, pace)})
            bar.total = max(progress.expected, 1)
            bar.set_description_str(_words(progress, pace), refresh=False)
            bar.update(progress.read - bar.n)
    return progress, pace.tokens_s(whole=True)


def _words(progress: RunProgress, pace: Pace) -> str:
    left, about = pace.seconds_left(), "" if progress.is_known else "~"
    time_left = "" if left is None else f", {tqdm.format_interval(left)} left"
    return f"{progress.read:,}/{about}{progress.expected:,} rows, {pace.tokens_s():,.0f} tokens/s{time_left}"
