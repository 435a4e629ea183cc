"""The head of a request: which paths and methods exist, and who may send them."""

import hmac
import re
from dataclasses import dataclass, field

from container.predictions import ID, ID_IN_WORDS, check_type
from container.refusal import Refusal
from container.rules import Rules
from settings import access

READING = ("GET", "HEAD")
PATHS = {"/": READING, "/health-check": READING, "/openapi.json": READING, "/predictions": ("POST",)}
OPEN = ("/", "/health-check")
WITH_ID = re.compile(r"/predictions/(.*?)(/cancel)?", re.DOTALL)
# The headers that the front reads. Each may be sent once.
KNOWN = frozenset(
    b"accept authorization content-encoding content-length content-type expect host origin prefer sec-fetch-site "
    b"traceparent tracestate transfer-encoding access-control-request-method".split()
)
# The headers that Cog's server gets, besides those of the body.
PASSED = (b"accept", b"traceparent", b"tracestate")
METHODS = "GET, HEAD, POST, PUT"
PREFLIGHT = {
    "access-control-allow-methods": METHODS,
    "access-control-allow-headers": "authorization, content-type, prefer",
    "access-control-max-age": "600",
    "vary": "origin",
}


@dataclass(slots=True)
class Head:
    """The head of a request, and what the front keeps beside it while the request is received and answered."""

    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    method: str = ""
    path: str = ""
    id: str | None = None
    body: bytes | bytearray = b""
    held_bytes: int = 0
    """Bytes of the body that count among those the front holds."""
    place: str = ""
    """The id of a large prediction that has passed the gate."""
    keeps_alive: bool = False
    refusal: Refusal | None = None
    repeated: str = ""
    allows: bytes = b""
    """The header of the answer that lets another site's page read it."""

    @property
    def is_prediction(self) -> bool:
        return self.method in ("POST", "PUT") and not self.path.endswith("/cancel")

    @property
    def is_async(self) -> bool:
        """Whether the client does not wait for the answer."""
        return self.headers.get(b"prefer") == b"respond-async"

    @property
    def has_body(self) -> bool:
        length = self.headers.get(b"content-length", b"0")
        return b"transfer-encoding" in self.headers or length.strip(b"0") != b""

    def passed_on(self, size: int) -> bytes:
        """Return the head that Cog's server gets, for a body of `size` bytes."""
        more = b"prefer: respond-async\r\n" if self.is_async else b""
        for name in PASSED:
            if name in self.headers:
                more += b"%s: %s\r\n" % (name, self.headers[name])
        if size:
            more += b"content-type: application/json\r\ncontent-length: %d\r\n" % size
        elif self.method not in READING:
            more += b"content-length: 0\r\n"
        return b"%s %s HTTP/1.1\r\nhost: front\r\n%s\r\n" % (self.method.encode(), self.path.encode(), more)


def check_head(head: Head, rules: Rules) -> None:
    """Set the path and id of a request whose headers are there. Raises Refusal if it may not be asked."""
    if head.repeated:
        raise Refusal(400, f"{head.repeated}: this header was sent twice; send it once")
    _check_site(head, rules)
    _find(head)
    if rules.api_key is not None and head.path not in OPEN:
        _check_key(head, rules.api_key)
    if head.has_body and head.method in ("POST", "PUT"):
        check_type(head.headers.get(b"content-type"), head.headers.get(b"content-encoding"))


def _find(head: Head) -> None:
    path = head.path = head.target.partition(b"?")[0].decode("latin-1")
    methods = PATHS.get(path)
    if methods is None and (match := WITH_ID.fullmatch(path)):
        if not ID.fullmatch(match[1]):
            raise Refusal(422, f"id: {match[1][:80]!r} in the URL is no id; {ID_IN_WORDS}", ("path", "id"))
        head.id, methods = match[1], ("POST",) if match[2] else ("PUT",)
    if methods is None:
        remedy = "a signal to this machine's server ends it" if path == "/shutdown" else "POST to /predictions"
        raise Refusal(404, f"{path[:80]}: there is no such path here; {remedy}")
    if head.method not in methods:
        allowed = ", ".join(methods)
        problem = f"{head.method} {path[:80]}: this path has no such method; use {allowed}"
        raise Refusal(405, problem, headers={"allow": allowed})


def _check_key(head: Head, api_key: str) -> None:
    scheme, _, key = head.headers.get(b"authorization", b"").strip().partition(b" ")
    if scheme.lower() != b"bearer" or not hmac.compare_digest(key.strip(), api_key.encode()):
        problem = "the key is missing or wrong; send this server's API_KEY in the header Authorization: Bearer ..."
        raise Refusal(401, problem, headers={"www-authenticate": "Bearer"})


def _check_site(head: Head, rules: Rules) -> None:
    """Raise Refusal for a request that a browser sent for a page of another site, unless API_ORIGINS lists the site."""
    headers = head.headers
    if b"origin" not in headers and b"sec-fetch-site" not in headers:
        return
    origin, host, site = (headers.get(name, b"").decode("latin-1") for name in (b"origin", b"host", b"sec-fetch-site"))
    is_listed = "*" in rules.origins or origin.lower() in rules.origins
    is_own = not access.is_foreign(origin, {host}, site, rules.origins) and (not origin or access.is_numbered(host))
    if not is_listed and not is_own:
        whose = f"a page of {origin[:200]}" if origin else "a page of another site"
        raise Refusal(403, f"Origin: {whose} may not ask this server; list its origin in API_ORIGINS")
    if origin and is_listed:
        head.allows = b"access-control-allow-origin: %s\r\nvary: origin\r\n" % headers[b"origin"]
        if head.method == "OPTIONS" and b"access-control-request-method" in headers:
            raise Refusal(204, "", headers=PREFLIGHT)
