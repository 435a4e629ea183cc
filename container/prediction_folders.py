"""Removing the folders that Cog's server makes for each prediction and never deletes.

Each has `inputs` and `outputs`, through which large requests and answers pass between Cog's server and its worker. All
servers on a machine, and in containers that share /tmp, keep them in one folder.

Cog's server makes the folder when a prediction comes, and after `run` uses it only for an answer of more than 6 MiB. So
most folders are removed as soon as their predictions are over, and the others by a sweep.
"""

import asyncio
import contextvars
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue

logger = logging.getLogger(__name__)

FOLDER = Path("/tmp/coglet/predictions")  # Cog's server ignores TMPDIR
# A prediction makes this folder in its own when it begins, and keeps its answer's file there.
MARK = "embeddinggemma"
OF_COGLET = {"inputs", "outputs"}
# Prefix of the folders that hold fetched files; nobody reads them after the prediction.
INPUT = "input-"
SWEEP_EVERY_S = 30.0
# An answer of no more numbers is sent without a file: at most 24 characters each, and no vector has fewer than 16.
SMALL_NUMBERS = 128 * 768
# A folder is removed at once if its id was not used again for so long: with thousands a second, one may be made as it
# goes, and only one that begins in the same microseconds would not be made again.
SETTLED_S = 0.5
# Removing a folder means waiting for the disk; on ext4 one thread removed 110 a second, and eight 1,300 to 2,100.
REMOVERS = 8
# A health check within this time of the last repeats its result.
CHECK_EVERY_S = 3.0
# A folder younger than this may belong to a prediction that begins.
YOUNG_S = 60.0
# An answer is sent within this time of the prediction's end.
GRACE_S = 30.0
# Files are kept longer: one may be an answer that is being uploaded.
FILE_GRACE_S = 600.0
# For a prediction that never began, or another program's server, which takes no locks.
STRANGER_GRACE_S = 24 * 3_600.0
SHARED_MODE = 0o1777  # as /tmp, so that another user's server can make folders of its own in it


class FolderError(RuntimeError):
    """The folder of Cog's server cannot be written, and every prediction would fail."""


class IdRefused(ValueError):
    """An id that leads out of the folder of Cog's server."""


class PredictionFolders:
    """Removes the folders of past predictions in the background, including those of other and of killed servers.

    A prediction marks its folder when it begins, and holds a lock on it until it ends. Every process that sees a folder
    sees its locks, and the kernel frees those of a process that has ended. A folder is removed as a whole, as a client
    may have sent the same id to two servers.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        """Raises FolderError where this user cannot write to the folder."""
        self._folder = folder
        self._ended: SimpleQueue[tuple[float, str]] = SimpleQueue()
        self._checked_at = time.monotonic()
        self._problem = self._find_problem()
        if self._problem is not None:
            raise FolderError(self._problem)

    def remove_in_background(self) -> None:
        """Start a thread that sweeps now and every SWEEP_EVERY_S, and REMOVERS that remove what `in_use` has kept."""
        for work in (self._sweep_forever, *[self._clear_forever] * REMOVERS):
            threading.Thread(target=work, name="prediction-folders", daemon=True).start()

    def _find_problem(self) -> str | None:
        """Do what Cog's server does for a prediction with much text, and return why that fails."""
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._folder.chmod(SHARED_MODE)
            with tempfile.TemporaryDirectory(prefix="check-", dir=self._folder) as folder:
                Path(folder, MARK).write_bytes(b"\0")
        except OSError as error:
            return (
                f"{self._folder}: Cog's server keeps every prediction there, and it cannot be written "
                f"({error.strerror}); make room there, remove it, or have its owner set its mode to {SHARED_MODE:o}"
            )
        return None

    async def healthy(self) -> bool:
        """Return whether predictions can be kept, by a check at most CHECK_EVERY_S old; log a change."""
        if time.monotonic() - self._checked_at >= CHECK_EVERY_S:
            self._checked_at = time.monotonic()
            problem = await asyncio.to_thread(self._find_problem)
            if problem != self._problem:
                logger.error("unhealthy: %s", problem) if problem else logger.warning("healthy again: %s", self._folder)
            self._problem = problem
        return self._problem is None

    @contextmanager
    def in_use(self) -> Iterator[Path]:
        """Keep the folder of the prediction that runs in this block, and yield a folder in it for its files.

        If that is empty at the end, as without a file and `keep_answer`, all is removed soon, and later otherwise.
        Raises IdRefused for an id with which Cog's server would write where nobody removes it.
        """
        name = _prediction_id() or f"file_{os.urandom(8).hex()}"
        folder = os.path.normpath(os.path.join(self._folder, name))
        if not folder.startswith(f"{self._folder}/"):
            _remove_empty([f"{folder}/inputs", f"{folder}/outputs", *([folder] if folder != str(self._folder) else [])])
            raise IdRefused("id: it leads out of the folder of predictions; give one of letters and digits, or none")
        lock = self._hold(folder)
        try:
            yield Path(folder, MARK)
        finally:
            if lock is not None:
                with suppress(OSError):
                    os.utime(lock)
                os.close(lock)
                if os.path.dirname(folder) == str(self._folder):  # what is locked is the folder of an id's first part
                    self._ended.put((time.time(), folder))

    def _hold(self, folder: str) -> int | None:
        """Return a descriptor that holds the lock on a prediction's folder, None if it cannot be locked, as on NFS.

        Every prediction waits for this, so it avoids pathlib, which takes three times as long.
        """
        root = f"{self._folder}/"
        swept, mark = root + folder.removeprefix(root).partition("/")[0], f"{folder}/{MARK}"
        with suppress(OSError):
            for _ in range(10):  # a sweep may have removed the folder while its file was downloading
                with suppress(FileNotFoundError):
                    _mark(folder, mark)
                    lock = _lock(swept, fcntl.LOCK_SH)
                    if os.path.isdir(mark) and os.path.isdir(f"{folder}/outputs"):
                        return lock
                    os.close(lock)
        return None

    def sweep(self, now: float) -> int:
        """Remove the folders of predictions that are past at `now`, as of time.time(); return how many."""
        removed = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):  # in use, another user's, or another server was quicker
                    removed += _seems_past(entry, now) and _remove(Path(entry), now)
        return removed

    def clear_next(self) -> bool:
        """Wait until a prediction has ended SETTLED_S ago, and return whether its folder could be removed."""
        ended, folder = self._ended.get()
        time.sleep(max(0.0, ended + SETTLED_S - time.time()))
        with suppress(OSError):  # in use or used again, or it has a file
            return _remove_ended(folder)
        return False

    def _clear_forever(self) -> None:
        while True:
            self.clear_next()

    def _sweep_forever(self) -> None:
        while True:
            with suppress(OSError):  # the folder has just gone
                self.sweep(time.time())
            time.sleep(SWEEP_EVERY_S)


def keep_answer(folder: Path, numbers: int) -> None:
    """Keep the prediction's folder, of which `in_use` yielded `folder`, if an answer of so many numbers may need it."""
    if numbers > SMALL_NUMBERS:
        (folder / "answer").mkdir(exist_ok=True)


def _prediction_id() -> str | None:
    """Return the id that Cog's server gave to the prediction in this context, None outside of any."""
    for variable, value in contextvars.copy_context().items():
        if variable.name == "_coglet_prediction_id":
            return str(value)
    return None


def _remove_empty(folders: Iterable[str]) -> None:
    """Remove empty folders that Cog's server has just made where it should not have."""
    for path in folders:
        with suppress(OSError):
            if time.time() - os.stat(path).st_mtime < YOUNG_S:
                os.rmdir(path)


def _mark(folder: str, mark: str) -> None:
    """Make the mark in a folder; if the folder or its `outputs` may be gone, make them again."""
    try:
        os.mkdir(mark)
    except (FileExistsError, FileNotFoundError):  # the same id was used before, or elsewhere
        for path in (f"{folder}/outputs", mark):
            os.makedirs(path, exist_ok=True)


def _lock(folder: str | Path, kind: int) -> int:
    """Return a descriptor that holds a lock of this kind until it is closed. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, kind)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _seems_past(entry: os.DirEntry[str], now: float) -> bool:
    """Return whether a closer look is worth it: most of tens of thousands are young, or a stranger's of today."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    age_s = now - entry.stat().st_mtime
    return age_s >= STRANGER_GRACE_S or (age_s >= GRACE_S and bool(set(os.listdir(entry)) - OF_COGLET))


def _remove_ended(folder: str) -> bool:
    """Remove a prediction's empty folders; return whether all are gone. Raises OSError if it is in use or has a file.

    A prediction that begins meanwhile with the same id waits for the lock, and makes again what it misses.
    """
    lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        if time.time() - os.fstat(lock).st_mtime < SETTLED_S:
            return False
        for path in (f"{folder}/inputs", f"{folder}/{MARK}", f"{folder}/outputs", folder):
            with suppress(FileNotFoundError):
                os.rmdir(path)
        return True
    finally:
        os.close(lock)


def _remove(folder: Path, now: float) -> bool:
    """Remove a folder that nobody needs any more; return whether it is gone. Raises OSError if it is in use."""
    lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        inside = list(folder.rglob("*"))
        is_marked = any(path.name == MARK for path in inside)
        if os.fstat(lock).st_mtime > now - (GRACE_S if is_marked else STRANGER_GRACE_S):
            return False
        answers = [path for path in inside if not (path.is_dir() or path.parent.name.startswith(INPUT))]
        if any(path.lstat().st_mtime > now - FILE_GRACE_S for path in answers):
            return False
        shutil.rmtree(folder)
        return True
    finally:
        os.close(lock)
