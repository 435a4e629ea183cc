"""How an operation is called over HTTP: key, body, answer, errors, and what happens when the client goes away."""

import asyncio
import hmac
import logging
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.bodies import decoded
from api.fields import check_url
from api.metrics import Metrics
from api.operations import Api, Call, Operation, in_ranges
from api.refusal import RETRY_AFTER_S, Refusal, refusal_of
from service import Service, off_loop

logger = logging.getLogger(__name__)

# A client's end is noticed only while the answer is being computed, and looked for from then on.
WATCH_AFTER_S = 0.05
JSON = "application/json"
# Of so few bytes the coding is undone where it stands, without handing them to another thread.
SMALL_BYTES = 10_000
# What a request counts as whose client went away, as nginx has it.
CLIENT_GONE = 499


@dataclass(frozen=True)
class Host:
    """What all operations share: the service, the key that clients must send, the largest body, and the metrics."""

    service: Service
    api_key: str | None
    max_body_bytes: int
    metrics: Metrics


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
            response = await self._answer(scope, receive)
        except ClientDisconnect:
            response = None
        except Exception as error:
            response = self._refuse(error)
        self._metric.finish(started, response.status_code if response else CLIENT_GONE)
        if response:
            await response(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        service = self._host.service
        if self._host.api_key is not None and not self.operation.is_open:
            self._check_key(Request(scope), self._host.api_key)
        body = self._decoder.decode(await self._read(scope, receive)) if self._decoder else None
        if not service.started and not self.operation.while_loading:
            raise Refusal("unready", "the model is being loaded; try again in a moment")
        call = Call(service, self._host.metrics, body, scope)
        if self._decoder and not self.operation.in_url:
            check_url(call.query)
        answer = await _while_connected(self.operation.handle(call), receive)
        if isinstance(answer, Response):
            return answer
        if call.truncated:
            call.headers["x-truncated"] = in_ranges(call.truncated)
        if call.prompted:
            call.headers["x-prompted"] = in_ranges(call.prompted)
        if service.started:
            call.headers["x-model"] = service.model.encode("ascii", "backslashreplace").decode()
        return Response(msgspec.json.encode(answer), headers=call.headers, media_type=JSON)

    def _check_key(self, request: Request, api_key: str) -> None:
        api = self.operation.api
        if not hmac.compare_digest(api.key(request).encode(), api_key.encode()):
            where = api.key_header if api.key_header != "authorization" else "Authorization: Bearer ..."
            raise Refusal("key", f"the key is missing or wrong; send this server's API_KEY in the header {where}")

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body. Raises Refusal for one that is too large, before reading it where its length is known."""
        limit = self._host.max_body_bytes
        too_large = f"body: it is larger than {limit:,} bytes; send fewer texts at once"
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > limit:
                raise Refusal("large", too_large)
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            parts.append(message["body"])
            size, more = size + len(parts[-1]), message["more_body"]
            if size > limit:
                raise Refusal("large", too_large)
        coding = Headers(scope=scope).get("content-encoding", "")
        return await off_loop(size > SMALL_BYTES, decoded, b"".join(parts), coding, limit)

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


async def _while_connected(work: Awaitable[Any], receive: Receive) -> Any:
    """Return what `work` returns. Raises ClientDisconnect, and cancels it, when its client goes away meanwhile."""
    task = asyncio.current_task()
    assert task is not None
    loop = task.get_loop()
    watcher: asyncio.Task[None] | None = None
    gone = False

    async def watch(task: "asyncio.Task[Any]") -> None:
        nonlocal gone
        while not gone:
            gone = (await receive())["type"] == "http.disconnect"
        task.cancel()

    def start_watching(task: "asyncio.Task[Any]") -> None:
        nonlocal watcher
        watcher = loop.create_task(watch(task))

    timer = loop.call_later(WATCH_AFTER_S, start_watching, task)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise ClientDisconnect from None
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
