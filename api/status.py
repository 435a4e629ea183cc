"""The server's own state: alive, ready, and its metrics."""

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from api.openai import error
from api.operations import Api, Call, Operation
from api.refusal import Refusal


class Status(msgspec.Struct):
    """`starting`, `ready` or `unhealthy`."""

    status: str


async def state(call: Call) -> Status:
    """Return the server's state. Raises Refusal when the engine is lost, and only a restart helps."""
    if not call.service.started:
        return Status("starting")
    if not await call.service.healthy():
        raise Refusal("unready", "the engine is lost, or gives other vectors than at the start; start the server again")
    return Status("ready")


async def metrics(call: Call) -> Response:
    """Return the metrics for Prometheus."""
    return Response(call.metrics.exposed(), media_type=CONTENT_TYPE_LATEST)


API = Api("This server", error)
OPERATIONS = [
    Operation(API, "GET", "/ready", "503 while requests are not answered.", state, None, Status, True),
    Operation(API, "GET", "/health", "As /ready, for TEI's clients.", state, None, Status, True),
    Operation(API, "GET", "/live", "503 when the server must be started again.", state, None, Status, True, True),
    Operation(API, "GET", "/metrics", "Metrics for Prometheus.", metrics, is_open=True, while_loading=True),
]
