"""The front's own answers, shaped as those of Cog's server."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec

# After these a client may retry, RETRY_AFTER_S later.
LATER = (429, 503)
RETRY_AFTER_S = 1


class Refusal(Exception):
    """A request that is not passed on: an HTTP status, and a sentence that names the problem and the remedy.

    `where` is the part of the request at fault, as `("body", "input", "text")`. `headers` are added to the answer's.
    """

    def __init__(
        self, status: int, sentence: str, where: Sequence[str] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.where, self.headers = status, sentence, where, headers or {}

    def response(self, is_last: bool = False, has_body: bool = True) -> bytes:
        """Return the whole answer; HEAD gets no body. `is_last` announces that the connection will be closed."""
        words: dict[str, Any] = {"detail": self.sentence}
        if self.where:
            words = {"detail": [{"loc": self.where, "msg": self.sentence, "type": "value_error"}]}
        elif self.status in LATER:
            words = {"error": self.sentence, "status": "failed"}
        headers = dict(self.headers)
        if self.status in LATER:
            headers["retry-after"] = str(RETRY_AFTER_S)
        body = msgspec.json.encode(words) if self.sentence else b""
        return answer(self.status, body, headers, is_last, has_body)


def answer(status: int, body: bytes, headers: Mapping[str, str], is_last: bool = False, has_body: bool = True) -> bytes:
    """Return an answer of JSON, or only of headers; for HEAD it tells the length that the body would have."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *(f"{name}: {value}" for name, value in headers.items())]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    if is_last:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body if has_body else b"")
