"""Whole files and folders that get their names: never in the place of what a run did not make."""

import ctypes
import errno
import os
import shutil
from contextlib import suppress
from pathlib import Path

from corpus.rows import CorpusError

# Errors of a file system without second names for files.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
# renameat2's flag, and its argument for paths as they are.
EXCHANGE, HERE = 2, -100


def publish(whole: Path, path: Path) -> None:
    """Give a whole file its name, beside the name that it has. Raises OSError, and CorpusError for a taken name."""
    try:
        try:
            os.link(whole, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _rename(whole, path)
    except FileExistsError:
        remedy = "move it away and run the same again: what is done is kept"
        raise CorpusError(str(path), "a file of this name has been made meanwhile", remedy) from None


def _rename(whole: Path, path: Path) -> None:
    """Take the name with an empty file, so that nobody else can, and put the whole file in its place."""
    path.open("xb").close()
    try:
        os.replace(whole, path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def is_published(whole: Path, path: Path) -> bool:
    """Return whether `path` is a name of the file `whole`."""
    with suppress(OSError):
        return os.path.samestat(os.lstat(whole), os.lstat(path))
    return False


def link(source: Path, path: Path) -> None:
    """Give a file a second name, or where that cannot be, copy it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)


def exchange(one: Path, other: Path) -> None:
    """Exchange two folders' names: at once where the system can, else one after the other."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2") and not libc.renameat2(HERE, bytes(one), HERE, bytes(other), EXCHANGE):
        return
    if (code := ctypes.get_errno()) not in (0, errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code), str(other))
    away = one.with_name("away")
    other.rename(away)
    one.rename(other)
    away.rename(one)
