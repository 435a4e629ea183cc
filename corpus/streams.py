"""Compressed files as the bytes that they hold: all of them, or an error.

Python's files for .xz, .bz2 and .zst take what follows a stream for nothing where it does not begin another one, so
padding or damage would cost all rows behind it without a word. Here every byte is of a whole stream, or is padding.
"""

import bz2
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, BinaryIO

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd

READ_BYTES = 1 << 17
XZ_PADDING = 4  # zero bytes, of which there are a multiple of so many
# The largest window that `zstd --long=31 --ultra` makes; 2 GiB of memory, of which small files touch little.
ZSTD_WINDOW_LOG: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}
# What reading a damaged file raises, beside OSError.
Damaged = (EOFError, lzma.LZMAError, zlib.error, zstd.ZstdError)


class Streams(io.RawIOBase):
    """The content of compressed streams that follow one another. `padding`: zeros between them, in such multiples."""

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


def _streams(begin: Callable[[], Any], padding: int = 0) -> Callable[[BinaryIO], BinaryIO]:
    return lambda file: io.BufferedReader(Streams(file, begin, padding), READ_BYTES)


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": gzip.open,  # knows padding, and refuses anything else after a stream
    ".bz2": _streams(bz2.BZ2Decompressor),
    ".xz": _streams(partial(lzma.LZMADecompressor, lzma.FORMAT_XZ), XZ_PADDING),
    ".zst": _streams(partial(zstd.ZstdDecompressor, options=ZSTD_WINDOW_LOG)),
}
