"""All APIs as one ASGI application."""

import functools
import re
from collections.abc import Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from api import cohere, gemini, ollama, openai, status, tei
from api.endpoint import JSON, Endpoint, Host, error_response
from api.openapi import PAGE, document
from api.operations import Api, Operation
from api.refusal import Refusal

OPERATIONS: Sequence[Operation] = [
    *openai.OPERATIONS,
    *tei.OPERATIONS,
    *gemini.OPERATIONS,
    *ollama.OPERATIONS,
    *cohere.OPERATIONS,
    *status.OPERATIONS,
]


def make_app(host: Host, origins: Sequence[str] = ()) -> Starlette:
    """Return the application; browsers' pages of other `origins` than its own may call it where they are listed."""
    routes = []
    for each in OPERATIONS:
        endpoint = Endpoint(each, host)
        # Not redirected, as that would lose a proxy's https:// and prefix; first, as a name may match with its slash.
        for path in dict.fromkeys((f"{each.path.rstrip('/')}/", each.path)):
            routes.append(Route(path, endpoint, methods=[each.method]))
    routes += [Route("/openapi.json", _openapi), Route("/docs", _docs), Route("/docs/", _docs_above)]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-truncated", "x-prompted", "x-model", "x-compute-tokens", "retry-after"],
    )
    app = Starlette(routes=routes, middleware=[cors] if origins else [], exception_handlers={HTTPException: _lost})
    app.router.redirect_slashes = False
    return app


async def _openapi(_: Request) -> Response:
    return Response(_encoded_document(), media_type=JSON)


@functools.cache
def _encoded_document() -> bytes:
    return msgspec.json.encode(document(OPERATIONS))


async def _docs(_: Request) -> Response:
    return HTMLResponse(PAGE)


async def _docs_above(_: Request) -> Response:
    return RedirectResponse("../docs")  # the page names openapi.json relative to itself, behind any proxy's prefix


async def _lost(request: Request, error: Exception) -> Response:
    """Answer a path that no API has, or another method than it has."""
    kind = "method" if isinstance(error, HTTPException) and error.status_code == 405 else "path"
    problem = f"{request.method} {request.url.path[:80]}: there is no such operation; /docs lists all that there are"
    return error_response(_api_at(request.url.path), Refusal(kind, problem))


def _api_at(path: str) -> Api:
    """Return the API whose clients ask for paths like this one."""
    if path.startswith("/v1beta/") or re.fullmatch("/v1/models/.*:.*", path):
        return gemini.API
    return {"api": ollama.API, "v2": cohere.API}.get(path.split("/")[1], openai.API)
