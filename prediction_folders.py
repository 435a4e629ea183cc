"""Removal of the folders that Cog's server makes for each prediction and does not delete.

Each holds two empty folders, `inputs` and `outputs`, and an answer's file where the client vanished before it was sent.
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

FOLDER = Path("/tmp/coglet/predictions")  # Cog's server ignores TMPDIR
SWEEP_EVERY_S = 30.0
# A prediction begins within this time after its folder was made, and its answer is sent within this time after its end.
GRACE_S = 30.0
# Files are kept for longer, because nothing says what they are.
FILE_GRACE_S = 600.0
# A file system's timestamps may lag behind time.time() by this much.
CLOCK_LAG_S = 1.0


class PredictionFolders:
    """Removes the folders of past predictions in the background and spares those of running predictions.

    A folder does not tell whose it is. It is spared while a prediction runs that began within GRACE_S of its making.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        """Start the thread."""
        self._folder = folder
        self._began: dict[object, float] = {}  # by prediction, until GRACE_S after its end
        self._ended: deque[tuple[float, object]] = deque()
        threading.Thread(target=self._sweep_forever, name="prediction-folders", daemon=True).start()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Spare the folder of the prediction that runs in this block."""
        prediction = object()
        self._began[prediction] = time.time()
        try:
            yield
        finally:
            self._ended.append((time.time(), prediction))

    def make(self) -> Path:
        """Return a new folder for an answer's file. It is removed like the others once the answer has been sent."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="file_", dir=self._folder))

    def sweep(self, now: float) -> int:
        """Remove the folders of predictions that are past at `now`, in seconds of time.time(); return how many."""
        while self._ended and self._ended[0][0] < now - GRACE_S:
            del self._began[self._ended.popleft()[1]]
        began = sorted(self._began.copy().values())
        removed = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another server on this machine was quicker
                    removed += entry.is_dir() and _is_past(entry, now, began) and _remove(Path(entry), now)
        return removed

    def _sweep_forever(self) -> None:
        while True:
            time.sleep(SWEEP_EVERY_S)
            with suppress(OSError):  # there is no folder yet, or it has just gone
                self.sweep(time.time())


def _is_past(folder: "os.DirEntry[str]", now: float, began: list[float]) -> bool:
    """Return whether the folder is old and belongs to none of the predictions that began at these sorted times."""
    made = folder.stat(follow_symlinks=False).st_mtime
    nearest = bisect.bisect_left(began, made - CLOCK_LAG_S)
    return made <= now - GRACE_S and not (nearest < len(began) and began[nearest] <= made + GRACE_S)


def _remove(folder: Path, now: float) -> bool:
    """Remove the folder unless it holds a recent file; return whether it is gone."""
    for path in (folder / "inputs", folder / "outputs", folder):
        with suppress(OSError):  # not there, or not empty
            path.rmdir()
    if not folder.exists():
        return True
    if any(path.lstat().st_mtime > now - FILE_GRACE_S for path in folder.rglob("*")):
        return False
    shutil.rmtree(folder, ignore_errors=True)
    return True
