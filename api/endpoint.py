"""How an operation is called over HTTP: key, body, answer, errors, and clients that go away."""

import hmac
import logging
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.bodies import Bodies, Body, decoded
from api.fields import check_url
from api.json_bodies import decode_in_pieces
from api.metrics import Metrics
from api.operations import Answer, Api, Call, Operation
from api.refusal import RETRY_AFTER_S, Refusal, refusal_of
from api.watch import Watch
from batching.pools import COMPRESSED_BYTES, JSON_BYTES, NUMBERS, run, run_in_pieces
from service import Service

logger = logging.getLogger(__name__)

JSON = "application/json"
# No operation has this many fields in its URL.
MOST_URL_FIELDS = 100
# The status under which a request is counted whose client went away, as in nginx.
CLIENT_GONE = 499


@dataclass(frozen=True)
class Host:
    """What all operations share: the service, the key that clients must send, the limits of bodies, and the metrics."""

    service: Service
    api_key: str | None
    bodies: Bodies
    metrics: Metrics
    watch: Watch = field(default_factory=Watch)


class Endpoint:
    """An ASGI application that answers the calls of an operation."""

    def __init__(self, operation: Operation, host: Host) -> None:
        self.operation = operation
        self._host = host
        self._decoder = msgspec.json.Decoder(operation.asks) if operation.asks else None
        self._metric = host.metrics.of(operation.method, operation.path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Whatever is raised becomes an error in the API's own shape."""
        started = self._metric.start()
        response: Response | None
        try:
            with self._host.bodies.body() as body:
                response = await self._answer(scope, receive, body)
        except ClientDisconnect:
            response = None
        except Exception as error:
            response = self._refuse(error)
        self._metric.finish(started, response.status_code if response else CLIENT_GONE)
        if response:
            await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, body: Body) -> Response:
        service = self._host.service
        if scope["query_string"].count(b"&") >= MOST_URL_FIELDS:
            raise Refusal("invalid", f"URL: it has more than {MOST_URL_FIELDS} fields; send them in the body")
        if self._host.api_key is not None and not self.operation.is_open:
            self._check_key(Request(scope), self._host.api_key)
        asked = await self._asked(self._decoder, scope, receive, body) if self._decoder else None
        if not service.started and not self.operation.while_loading:
            raise Refusal("unready", "the model is being loaded; try again in a moment")
        call = Call(service, self._host.metrics, asked, scope)
        if scope["query_string"] and self._decoder and not self.operation.in_url:
            check_url(call.query)
        return await self._host.watch.while_connected(self._handled(call), receive)

    async def _handled(self, call: Call) -> Response:
        answer = await self.operation.handle(call)
        if isinstance(answer, Response):
            return answer
        of_texts = answer if isinstance(answer, Answer) else Answer(lambda: answer)
        headers = of_texts.headers()
        if call.service.started:
            headers["x-model"] = call.service.model.encode("ascii", "backslashreplace").decode()
        content = await run(NUMBERS, of_texts.size, lambda: msgspec.json.encode(of_texts.write()))
        return Response(content, headers=headers, media_type=JSON)

    def _check_key(self, request: Request, api_key: str) -> None:
        api = self.operation.api
        if not hmac.compare_digest(api.key(request).encode(), api_key.encode()):
            where = api.key_header if api.key_header != "authorization" else "Authorization: Bearer ..."
            raise Refusal("key", f"the key is missing or wrong; send this server's API_KEY in the header {where}")

    async def _asked(self, decoder: "msgspec.json.Decoder[Any]", scope: Scope, receive: Receive, body: Body) -> Any:
        """Return the body as the operation's type. Raises Refusal, or what msgspec raises."""
        sent = await body.read(scope, receive)
        coding = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"content-encoding"), "")
        bodies = self._host.bodies
        raw = await run(COMPRESSED_BYTES, len(sent) if coding else 0, decoded, sent, coding, bodies.most_bytes)
        if len(raw) <= JSON_BYTES.on_loop:
            return decoder.decode(raw)
        pieces = decode_in_pieces(decoder, raw, bodies.most_values)
        return await self._host.watch.while_connected(run_in_pieces(JSON_BYTES, len(raw), pieces), receive)

    def _refuse(self, error: Exception) -> Response:
        """Return the error that the API has for an exception."""
        refusal = refusal_of(error)
        if refusal is None:
            logger.error("%s %s failed", self.operation.method, self.operation.path, exc_info=error)
            refusal = Refusal("failed", "the server failed at this request, and its log says why")
        return error_response(self.operation.api, refusal)


def error_response(api: Api, refusal: Refusal) -> Response:
    """Return a refusal in the shape of an API's errors."""
    status = api.status(refusal)
    headers = {}
    if refusal.kind in ("busy", "unready"):
        headers["retry-after"] = str(RETRY_AFTER_S)
    if refusal.kind == "key":
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(api.error(refusal, status)), status, headers, JSON)
