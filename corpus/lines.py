"""The lines of a file, packed or not, with never more of a line in memory than the limit.

Python's files for .xz, .bz2 and .zst ignore whatever follows a stream and is not another stream, so padding or damage
would silently cost all rows behind it. Here every byte belongs to a whole stream, or is padding.
"""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO

from corpus.limits import MB, Limits

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

READ_BYTES = 1 << 17
LINE_END_BYTES = 2
"""The limit of a line is for what comes before its end."""
XZ_PADDING = 4  # its zero bytes come in multiples of this
# What xz needs beside its dictionary.
XZ_BESIDE_BYTES = 1 << 21
ZSTD_WINDOW_LOGS = range(10, 32)
Damaged = (EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)
"""What reading a damaged file raises, beside OSError."""


class TooFarUnpacked(ValueError):
    """A file that unpacks to more than its size allows."""


@dataclass(frozen=True, slots=True)
class Overlong:
    """A line that is longer than the limit, and was passed over. `quotes` counts its quotes."""

    problem: str
    quotes: int


class Metered(io.RawIOBase):
    """A file whose every read first calls `check`, which may raise; raises TooFarUnpacked after `allowed` bytes."""

    def __init__(self, file: BinaryIO, check: Callable[[], None], allowed: float, problem: str = "") -> None:
        self._file: Any = file
        self._check, self._left, self._problem = check, allowed, problem

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._check()
        count = int(self._file.readinto(buffer))
        self._left -= count
        if self._left < 0:
            raise TooFarUnpacked(self._problem)
        return count


class Streams(io.RawIOBase):
    """The content of consecutive compressed streams. Zeros between them come in multiples of `padding`, 0 for none."""

    def __init__(self, file: BinaryIO, begin: Callable[[], Any], padding: int = 0) -> None:
        self._file, self._begin, self._padding = file, begin, padding
        self._stream, self._ahead = begin(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError, or what the decompressor raises, for damage."""
        while not self._stream.eof or self._next_stream():
            data = b""
            if self._stream.needs_input:
                data, self._ahead = self._ahead or self._file.read(READ_BYTES), b""
                if not data:
                    raise EOFError("it ends within a compressed stream")
            content = self._stream.decompress(data, len(buffer))
            if content:
                buffer[: len(content)] = content
                return len(content)
        return 0

    def _next_stream(self) -> bool:
        """Begin with what follows the stream that has ended, and return whether anything does."""
        data, zeros = self._stream.unused_data or self._file.read(READ_BYTES), 0
        while self._padding and data and not data.strip(b"\0"):
            zeros += len(data)
            data = self._file.read(READ_BYTES)
        if self._padding:
            zeros += len(data) - len(data.lstrip(b"\0"))
            data = data.lstrip(b"\0")
            if zeros % self._padding:
                raise EOFError(f"{zeros} zero bytes follow a stream, which is no multiple of {self._padding}")
        self._stream, self._ahead = self._begin() if data else self._stream, data
        return bool(data)


def _gzip(file: BinaryIO, limits: Limits) -> Any:
    return gzip.open(file)  # knows padding, and refuses anything else after a stream


def _bzip2(file: BinaryIO, limits: Limits) -> Any:
    return Streams(file, bz2.BZ2Decompressor)


def _xz(file: BinaryIO, limits: Limits) -> Any:
    memory = limits.window_bytes + XZ_BESIDE_BYTES
    return Streams(file, partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, memlimit=memory), XZ_PADDING)


def _zstd(file: BinaryIO, limits: Limits) -> Any:
    log = min(max(limits.window_bytes.bit_length() - 1, ZSTD_WINDOW_LOGS[0]), ZSTD_WINDOW_LOGS[-1])
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: log}
    return Streams(file, partial(zstd.ZstdDecompressor, options=options))


DECOMPRESSORS: dict[str, Callable[[BinaryIO, Limits], Any]] = {".gz": _gzip, ".bz2": _bzip2, ".xz": _xz, ".zst": _zstd}


def window_problem(error: Exception, limits: Limits) -> str | None:
    """Return in words that a stream needs a larger window, None for any other error."""
    if not any(words in str(error) for words in ("Memory usage limit exceeded", "too much memory")):
        return None
    window_mb = limits.window_bytes // MB
    return (
        f"unpacking needs a window of more than {window_mb:,} MB; set CORPUS_WINDOW_MB to that of its writer, as 2048"
    )


def lines_of(
    file: BinaryIO, suffix: str, size: int, limits: Limits, check: Callable[[], None]
) -> Iterator[bytes | Overlong]:
    """Yield the lines, with their ends, of a file of `size` bytes that is packed if DECOMPRESSORS has its `suffix`.

    Nothing is kept of a line that is too long. `check` is called before each read. Raises TooFarUnpacked, OSError and
    what `Damaged` names.
    """
    content = io.BufferedReader(Metered(file, check, float("inf")), READ_BYTES)
    if unpack := DECOMPRESSORS.get(suffix):
        allowed, problem = limits.unpacked_bytes(size), limits.too_far_unpacked(size)
        content = io.BufferedReader(Metered(unpack(content, limits), check, allowed, problem), READ_BYTES)
    most = limits.line_bytes + LINE_END_BYTES
    for line in iter(partial(content.readline, most + 1), b""):
        yield line if len(line) <= most else _pass_over(content, line, limits)


def _pass_over(file: "io.BufferedReader[Metered]", piece: bytes, limits: Limits) -> Overlong:
    """Read up to the end of a line whose first piece is given."""
    quotes = piece.count(b'"')
    while piece and not piece.endswith(b"\n"):
        piece = file.readline(READ_BYTES)
        quotes += piece.count(b'"')
    return Overlong(limits.too_long("the line"), quotes)
