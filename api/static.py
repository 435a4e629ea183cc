"""Files for browsers: read and compressed once, then sent from memory with an ETag."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
# Browsers take no file for anything but its type, and tell no other site where they come from.
SAFE = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """A file's bytes, the same with gzip, its media type, and a digest of the bytes in hex."""

    content: bytes
    compressed: bytes
    media_type: str
    digest: str

    @classmethod
    def of(cls, content: bytes, suffix: str) -> "StaticFile":
        """Return the file of these bytes; `suffix` is a key of TYPES."""
        digest = hashlib.sha256(content).hexdigest()[:16]
        return cls(content, gzip.compress(content, 9, mtime=0), TYPES[suffix], digest)


@cache
def read(path: Path) -> StaticFile:
    """Return a file of this image. The first call reads and compresses it, so it belongs in a thread."""
    return StaticFile.of(path.read_bytes(), path.suffix)


def answer(request: Request, file: StaticFile, cache_control: str, headers: Mapping[str, str] = SAFE) -> Response:
    """Return a file as the client asks for it: compressed where it reads gzip, nothing where it has the file."""
    etag = f'W/"{file.digest}"'
    sent = {**headers, "etag": etag, "cache-control": cache_control, "vary": "accept, accept-encoding"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=sent)
    if "gzip" in request.headers.get("accept-encoding", ""):
        return Response(file.compressed, headers=sent | {"content-encoding": "gzip"}, media_type=file.media_type)
    return Response(file.content, headers=sent, media_type=file.media_type)
