"""A corpus's bytes: a plain file of this machine, or a URL's content.

Libraries that read URLs raise errors of many families. Behind `open_source` all are RemoteError, in one sentence.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from corpus.rows import CorpusError

REMOTE_READ_BYTES = 1 << 20
CHECK_ADDRESS = "check the address, the network and what may be read there, or download the file and name it"
NOT_PLAIN = {
    stat.S_IFDIR: ("a folder", "name the files in it"),
    stat.S_IFIFO: ("a pipe, and is read more than once", "write it to a file and name that"),
    stat.S_IFSOCK: ("a socket", "write what it sends to a file and name that"),
    stat.S_IFCHR: ("a device", "write what it holds to a file and name that"),
    stat.S_IFBLK: ("a device", "write what it holds to a file and name that"),
}


class RemoteError(OSError):
    """A URL whose content cannot be read, or not all of it."""


class Unreachable(CorpusError):
    """A file that cannot be opened or read for now; of what it holds that says nothing."""


def open_source(path: str, name: str | None = None) -> BinaryIO:
    """Return the file, at its beginning and seekable. Reading it raises only OSError.

    Raises CorpusError, whose place is `name`, or else the path.
    """
    name = name or path
    if "://" not in path:
        return _open_local(path, name)
    files, inner = file_system(path, name)
    if isinstance(files, LocalFileSystem):
        return _open_local(inner, name)
    try:
        with as_remote_error():
            return _open_remote(name, files, inner)
    except RemoteError as error:
        raise Unreachable(name, f"cannot be opened: {reason(error)}", CHECK_ADDRESS) from error


def file_system(path: str, name: str) -> tuple[Any, str]:
    """Return fsspec's file system of a path or URL, and what it calls the path. Raises Unreachable."""
    try:
        with as_remote_error():
            files, inner = fsspec.core.url_to_fs(path)
            return files, inner
    except RemoteError as error:
        is_missing = isinstance(error.__cause__, ImportError)
        remedy = "install it with pip and run the same again" if is_missing else CHECK_ADDRESS
        why = reason(error.__cause__ if is_missing and error.__cause__ else error)
        raise Unreachable(name, f"cannot be opened: {why}", remedy) from error


def is_single(path: str) -> bool:
    """Return whether a path can only be a file: what http serves has no folders, and its question marks no magic."""
    return path.startswith(("http://", "https://"))


def name_of(path: str) -> str:
    """Return a path or URL up to the end of its file's name: an http URL ends before its query."""
    protocol, _, rest = path.partition("://")
    return rest.partition("?")[0].partition("#")[0] if protocol.endswith(("http", "https")) and rest else path


def reason(error: BaseException) -> str:
    """Return in one line what an error says."""
    if isinstance(error, FileNotFoundError) and not error.strerror:  # fsspec's, which has only the address
        return reason(error.__cause__) if error.__cause__ else "there is no such file"
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text or type(error).__name__


def _open_local(path: str, name: str) -> BinaryIO:
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if kind != stat.S_IFREG:
            what, remedy = NOT_PLAIN.get(kind, ("no plain file", "name one"))
            raise Unreachable(name, f"it is {what}", remedy)
        return open(path, "rb")
    except OSError as error:
        raise Unreachable(name, f"cannot be opened: {reason(error)}", "check the path") from error


def _open_remote(name: str, file_system: Any, inner: str) -> BinaryIO:
    file = file_system.open(inner, "rb")
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
    except (ValueError, OSError, TypeError):
        file.close()
        raise Unreachable(
            name,
            "its server does not say how long it is, or cannot send parts of it, so a broken connection would look "
            "like the end",
            "download the file and name it",
        ) from None
    return cast(BinaryIO, io.BufferedReader(_Remote(file, size), REMOTE_READ_BYTES))


class _Remote(io.RawIOBase):
    """A file that another library reads. Its errors, and an end before `size` bytes, become RemoteError."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size = file, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with as_remote_error():
            self._file.seek(offset, whence)
            return self.tell()

    def tell(self) -> int:
        with as_remote_error():
            return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        at = self.tell()
        with as_remote_error():
            data = self._file.read(min(len(buffer), max(self._size - at, 0)))
        if not data and at < self._size:
            raise RemoteError(f"it ended after {at:,} of {self._size:,} bytes")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def as_remote_error() -> Iterator[None]:
    """Raise as RemoteError whatever another library raises, except errors of this process."""
    try:
        yield
    except (RemoteError, MemoryError, CorpusError):
        raise
    except Exception as error:
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise RemoteError(f"{name}{reason(error)}") from error
