"""A corpus's bytes: a plain file of this machine, or what a URL names.

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
NOT_PLAIN = {
    stat.S_ISDIR: "a folder; name one file, as folders are read only with --ray",
    stat.S_ISFIFO: "a pipe, and is read more than once; write it to a file and name that",
    stat.S_ISSOCK: "a socket; write what it sends to a file and name that",
    stat.S_ISCHR: "a device; write what it holds to a file and name that",
    stat.S_ISBLK: "a device; write what it holds to a file and name that",
}


class RemoteError(OSError):
    """What a URL names cannot be had, or not all of it."""


def open_source(path: str) -> BinaryIO:
    """Return the file, at its beginning and seekable. Raises CorpusError; reading it raises only OSError."""
    if "://" not in path:
        return _open_local(path, path)
    try:
        with _as_remote_error():
            file_system, name = fsspec.core.url_to_fs(path)
            if not isinstance(file_system, LocalFileSystem):
                return _open_remote(path, file_system, name)
    except RemoteError as error:
        raise CorpusError(
            f"{path}: cannot be opened: {reason(error)}; check the address, the network and what may be read there, or "
            "download the file and name it"
        ) from error
    return _open_local(path, name)


def name_of(path: str) -> str:
    """Return a path or URL up to its file's name: of http, without what follows a question mark."""
    protocol, _, rest = path.partition("://")
    return rest.partition("?")[0].partition("#")[0] if protocol.endswith(("http", "https")) and rest else path


def reason(error: BaseException) -> str:
    """Return in one line what an error says."""
    if isinstance(error, FileNotFoundError) and not error.strerror:  # fsspec's, which has nothing but the address
        return reason(error.__cause__) if error.__cause__ else "there is no such file"
    text = getattr(error, "strerror", None) or " ".join(str(error).split())
    return text or type(error).__name__


def _open_local(path: str, name: str) -> BinaryIO:
    try:
        mode = os.stat(name).st_mode
        if not stat.S_ISREG(mode):
            kind = next((words for is_kind, words in NOT_PLAIN.items() if is_kind(mode)), "no plain file; name one")
            raise CorpusError(f"{path}: it is {kind}")
        return open(name, "rb")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be opened: {reason(error)}; check the path") from error


def _open_remote(path: str, file_system: Any, name: str) -> BinaryIO:
    file = file_system.open(name, "rb")
    try:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
    except (ValueError, OSError, TypeError):
        file.close()
        raise CorpusError(
            f"{path}: its server does not say how long it is, or cannot send parts of it, so a broken connection "
            "would look like the end; download the file and name it"
        ) from None
    return cast(BinaryIO, io.BufferedReader(_Remote(file, size), REMOTE_READ_BYTES))


class _Remote(io.RawIOBase):
    """A file that another library reads: its errors as RemoteError, and an end before its size as one too."""

    def __init__(self, file: Any, size: int) -> None:
        self._file, self._size = file, size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _as_remote_error():
            self._file.seek(offset, whence)
            return self.tell()

    def tell(self) -> int:
        with _as_remote_error():
            return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        at = self.tell()
        with _as_remote_error():
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
def _as_remote_error() -> Iterator[None]:
    """Raise whatever a library of others raises as RemoteError, but for what is about this process."""
    try:
        yield
    except (RemoteError, MemoryError, CorpusError):
        raise
    except Exception as error:
        name = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
        raise RemoteError(f"{name}{reason(error)}") from error
