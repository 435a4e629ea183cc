"""What Cog's server leaves behind of each prediction: a folder with two empty ones in it.

Where a client vanished, there may also be the answer that it did not wait for.
"""

import bisect
import os
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = Path("/tmp/coglet/predictions")  # Cog's server does not heed TMPDIR
EVERY_S = 30.0
# A prediction begins within this time after its folder was made, and its answer has left within it after its end.
GRACE_S = 30.0
# Files in it are left alone for longer: nobody knows what they are.
FILES_S = 600.0
# A file system's clock ticks behind the other.
CLOCK_S = 1.0


class PredictionFolders:
    """Removes them in the background, except where a running prediction may still want to put something in.

    A folder does not say whose it is. It is spared while a prediction runs that began within GRACE_S of its making.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        """Start the thread."""
        self._folder = folder
        self._begun: dict[object, float] = {}
        self._ended: deque[tuple[float, object]] = deque()
        threading.Thread(target=self._sweep_for_ever, name="prediction-folders", daemon=True).start()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Spare the folder of the prediction that runs in this block."""
        key = object()
        self._begun[key] = time.time()
        try:
            yield
        finally:
            self._ended.append((time.time(), key))

    def make(self) -> Path:
        """Return a new folder for an answer's file, which is removed like the others when its answer has left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="file_", dir=self._folder))

    def sweep(self, now: float) -> int:
        """Remove what is left at the time `now` and return how many predictions' folders that were."""
        while self._ended and self._ended[0][0] < now - GRACE_S:
            del self._begun[self._ended.popleft()[1]]
        begun = sorted(self._begun.copy().values())
        removed = 0
        with os.scandir(self._folder) as found:
            for one in found:
                with suppress(FileNotFoundError):  # another server on this machine was quicker
                    removed += one.is_dir() and self._is_left(one, now, begun) and self._remove(Path(one), now)
        return removed

    def _is_left(self, folder: "os.DirEntry[str]", now: float, begun: list[float]) -> bool:
        made = folder.stat(follow_symlinks=False).st_mtime
        nearest = bisect.bisect_left(begun, made - CLOCK_S)
        return made <= now - GRACE_S and not (nearest < len(begun) and begun[nearest] <= made + GRACE_S)

    def _remove(self, folder: Path, now: float) -> bool:
        for inner in (folder / "inputs", folder / "outputs", folder):
            with suppress(OSError):  # not there, or not empty
                inner.rmdir()
        if not folder.exists():
            return True
        if any(file.lstat().st_mtime > now - FILES_S for file in folder.rglob("*")):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True

    def _sweep_for_ever(self) -> None:
        while True:
            time.sleep(EVERY_S)
            with suppress(OSError):  # nothing there yet, or gone meanwhile
                self.sweep(time.time())
