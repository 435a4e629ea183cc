"""Bodies as clients send them: compressed, or with a byte order mark."""

import zlib

from api.refusal import Refusal

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What zlib's window bits are for each Content-Encoding: gzip, and zlib's own format, which HTTP calls deflate.
WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


def decoded(body: bytes, coding: str, limit: int) -> bytes:
    """Return a body without its Content-Encoding, decompressing no more than `limit` bytes. Raises Refusal."""
    coding = coding.strip().lower()
    if coding in WINDOW_BITS:
        body = _decompressed(body, coding, limit)
    elif coding not in ("", "identity"):
        raise Refusal("coding", f"body: Content-Encoding {coding[:80]!r} is unknown here; send gzip, deflate or none")
    elif body.startswith(b"\x1f\x8b"):
        raise Refusal("body", "body: it is compressed; say so in the header Content-Encoding: gzip")
    return body.removeprefix(BYTE_ORDER_MARK)


def _decompressed(body: bytes, coding: str, limit: int) -> bytes:
    stream = zlib.decompressobj(WINDOW_BITS[coding])
    try:
        whole = stream.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal("body", f"body: it is not {coding}, as its Content-Encoding says ({error})") from None
    if len(whole) > limit:
        raise Refusal("large", f"body: decompressed it is larger than {limit:,} bytes; send fewer texts at once")
    if not stream.eof or stream.unused_data:
        problem = "goes on behind its end" if stream.eof else "ends too early"
        raise Refusal("body", f"body: its {coding} {problem}; send one whole stream")
    return whole
