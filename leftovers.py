"""The empty directories that Cog's server leaves behind, one for each prediction."""

import bisect
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DIRECTORY = Path("/tmp/coglet/predictions")  # Cog's server does not heed TMPDIR
EVERY_S = 30.0
# A prediction begins within this time after its directory was made, or its directory is not spared.
START_S = 30.0
# A file system's clock ticks behind the other.
CLOCK_S = 1.0


class Leftovers:
    """Removes them in the background, except where a running prediction may still want to put something in.

    A directory does not say whose it is. It is spared when a prediction is running that began within START_S of its
    making; only empty ones are ever removed.
    """

    def __init__(self, directory: Path = DIRECTORY) -> None:
        """Start the thread."""
        self._directory = directory
        self._running: dict[object, float] = {}
        threading.Thread(target=self._sweep_for_ever, name="leftovers", daemon=True).start()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Spare the directory of the prediction that runs in this block."""
        key = object()
        self._running[key] = time.time()
        try:
            yield
        finally:
            del self._running[key]

    def sweep(self, now: float) -> int:
        """Remove what is left at the time `now` and return how many directories that were."""
        removed = 0
        begun = sorted(self._running.copy().values())
        with os.scandir(self._directory) as found:
            for one in found:
                made = one.stat(follow_symlinks=False).st_mtime
                nearest = bisect.bisect_left(begun, made - CLOCK_S)
                if made > now - START_S or (nearest < len(begun) and begun[nearest] <= made + START_S):
                    continue
                try:
                    os.rmdir(one)
                    removed += 1
                except OSError:  # not empty, not a directory, or gone
                    continue
        return removed

    def _sweep_for_ever(self) -> None:
        while True:
            time.sleep(EVERY_S)
            try:
                self.sweep(time.time())
            except OSError:  # nothing there yet
                continue
