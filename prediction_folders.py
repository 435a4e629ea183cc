"""Removal of the folders that Cog's server makes for each prediction and does not delete.

Each holds `inputs` and `outputs`, through which large requests and answers go between Cog's server and its worker. All
servers of a machine, and of containers that share /tmp, have them in one folder.
"""

import contextvars
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FOLDER = Path("/tmp/coglet/predictions")  # Cog's server ignores TMPDIR
# A prediction makes this in its folder when it begins, and has the file of its answer there.
MARK = "embeddinggemma"
OF_COGLET = {"inputs", "outputs"}
SWEEP_EVERY_S = 30.0
# An answer is sent within this time after the prediction's end.
GRACE_S = 30.0
# Files are kept for longer: one may be an answer that is being uploaded.
FILE_GRACE_S = 600.0
# Of a prediction that never began, or of another program's server, which takes no locks.
STRANGER_GRACE_S = 24 * 3_600.0
SHARED_MODE = 0o1777  # as /tmp, so that another user's server can make folders of its own in it


class FolderError(RuntimeError):
    """The folder of Cog's server cannot be written, and every prediction would fail."""


class PredictionFolders:
    """Removes the folders of past predictions in the background, also those of other servers and of killed ones.

    A prediction marks its folder when it begins, and holds a lock on it until it ends. All processes that can see a
    folder see its locks, and the kernel frees those of a process that has ended. A folder is removed as a whole, as a
    client may have sent the same id to two servers.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        """Start the thread. Raises FolderError where this user cannot write to the folder."""
        self._folder = folder
        self._check()
        threading.Thread(target=self._sweep_forever, name="prediction-folders", daemon=True).start()

    def _check(self) -> None:
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
                self._folder.chmod(SHARED_MODE)
            tempfile.TemporaryFile(dir=self._folder).close()
        except OSError as error:
            raise FolderError(
                f"{self._folder}: Cog's server keeps every prediction there, and it cannot be written "
                f"({error.strerror}); remove it, or have its owner set its mode to {SHARED_MODE:o}"
            ) from None

    @contextmanager
    def in_use(self) -> Iterator[Path]:
        """Keep the folder of the prediction that runs in this block; yield a folder in it for its answer's file."""
        name = _prediction_id() or f"file_{os.urandom(8).hex()}"
        folder = os.path.normpath(os.path.join(self._folder, name))
        lock = self._hold(folder)
        try:
            yield Path(folder, MARK)
        finally:
            if lock is not None:
                with suppress(OSError):
                    os.utime(lock)
                os.close(lock)

    def _hold(self, folder: str) -> int | None:
        """Return what holds the lock on a prediction's folder, None where there is none to be had, as on NFS.

        Every prediction waits for this, so it makes do without pathlib, which would take three times as long.
        """
        root = f"{self._folder}/"
        if not folder.startswith(root):  # an id may lead elsewhere, where nothing is swept
            return None
        swept, mark = root + folder.removeprefix(root).partition("/")[0], f"{folder}/{MARK}"
        with suppress(OSError):
            for _ in range(10):  # a sweep may have removed the folder while its file was still downloaded
                with suppress(FileNotFoundError):
                    _mark(folder, mark)
                    lock = _lock(swept, fcntl.LOCK_SH)
                    if os.path.isdir(mark):
                        return lock
                    os.close(lock)
        return None

    def sweep(self, now: float) -> int:
        """Remove the folders of predictions that are past at `now`, in seconds of time.time(); return how many."""
        removed = 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(OSError):  # in use, another user's, or another server was quicker
                    removed += _seems_past(entry, now) and _remove(Path(entry), now)
        return removed

    def _sweep_forever(self) -> None:
        while True:
            time.sleep(SWEEP_EVERY_S)
            with suppress(OSError):  # the folder has just gone
                self.sweep(time.time())


def _prediction_id() -> str | None:
    """Return what Cog's server calls the prediction that runs in this context; None outside of any."""
    for variable, value in contextvars.copy_context().items():
        if variable.name == "_coglet_prediction_id":
            return str(value)
    return None


def _mark(folder: str, mark: str) -> None:
    """Make the mark in a folder, and the folder and its `outputs` anew where it is gone."""
    try:
        os.mkdir(mark)
    except FileExistsError:  # of the same id, on another server
        pass
    except FileNotFoundError:
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
    """Return whether it is worth a closer look: of tens of thousands, most are young, or strangers' of today."""
    if not entry.is_dir(follow_symlinks=False):
        return False
    age_s = now - entry.stat().st_mtime
    return age_s >= STRANGER_GRACE_S or (age_s >= GRACE_S and bool(set(os.listdir(entry)) - OF_COGLET))


def _remove(folder: Path, now: float) -> bool:
    """Remove the folder if nobody needs it any more; return whether it is gone. Raises OSError if it is in use."""
    lock = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        inside = list(folder.rglob("*"))
        is_marked = any(path.name == MARK for path in inside)
        if os.fstat(lock).st_mtime > now - (GRACE_S if is_marked else STRANGER_GRACE_S):
            return False
        if any(not path.is_dir() and path.lstat().st_mtime > now - FILE_GRACE_S for path in inside):
            return False
        shutil.rmtree(folder)
        return True
    finally:
        os.close(lock)
