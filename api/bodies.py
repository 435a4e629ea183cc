"""Bodies as clients send them: in parts, compressed, or with a byte order mark. Each is limited, and their sum."""

import zlib
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from api.refusal import Refusal

# Bytes of each body that are not counted, so small requests are read whatever others send.
UNCOUNTED_BYTES = 1 << 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# zlib's window bits for each Content-Encoding: gzip, and zlib's own format, which HTTP calls deflate.
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


@dataclass
class Bodies:
    """The limits of bodies, and the bytes of all requests that are being answered."""

    most_bytes: int
    most_values: int
    most_bytes_together: int
    bytes_now: int = 0

    def body(self) -> "Body":
        """Return a body whose bytes count until the end of its with block."""
        return Body(self)


class Body:
    """The body of one request."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._counted = 0

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bodies.bytes_now -= self._counted

    async def read(self, scope: Scope, receive: Receive) -> bytearray:
        """Return the bytes. Raises Refusal for too many, if possible before reading them."""
        limit = self._bodies.most_bytes
        too_large = f"body: it is larger than {limit:,} bytes; send fewer texts at once"
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > limit:
                raise Refusal("large", too_large)
        whole, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            whole += message["body"]
            more = message["more_body"]
            if len(whole) > limit:
                raise Refusal("large", too_large)
            self._count(max(0, len(whole) - UNCOUNTED_BYTES))
        return whole

    def _count(self, size: int) -> None:
        bodies = self._bodies
        if bodies.bytes_now - self._counted + size > bodies.most_bytes_together:
            raise Refusal(
                "busy",
                f"busy: the bodies of all requests have more than {bodies.most_bytes_together:,} bytes "
                "(API_BODIES_MB); try again in a moment",
            )
        bodies.bytes_now += size - self._counted
        self._counted = size


def decoded(body: bytes | bytearray, coding: str, limit: int) -> bytes | bytearray:
    """Return a body without its Content-Encoding, decompressing no more than `limit` bytes. Raises Refusal."""
    coding = coding.strip().lower()
    if coding in WINDOW_BITS:
        body = _decompressed(body, coding, limit)
    elif coding not in ("", "identity"):
        raise Refusal("coding", f"body: Content-Encoding {coding[:80]!r} is unknown here; send gzip, deflate or none")
    elif body.startswith(b"\x1f\x8b"):
        raise Refusal("body", "body: it is compressed; say so in the header Content-Encoding: gzip")
    return body[len(BYTE_ORDER_MARK) :] if body.startswith(BYTE_ORDER_MARK) else body


def _decompressed(body: bytes | bytearray, coding: str, limit: int) -> bytes:
    stream = zlib.decompressobj(WINDOW_BITS[coding])
    try:
        whole = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal("body", f"body: it is not {coding}, as its Content-Encoding says ({error})") from None
    if len(whole) > limit:
        raise Refusal("large", f"body: decompressed it is larger than {limit:,} bytes; send fewer texts at once")
    if not stream.eof or stream.unused_data:
        problem = "goes on after its end" if stream.eof else "ends too early"
        raise Refusal("body", f"body: its {coding} {problem}; send one whole stream")
    return whole
