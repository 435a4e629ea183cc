"""All APIs as one ASGI application."""

import functools
import re
from collections.abc import Mapping, Sequence

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api import cohere, docs, gemini, ollama, openai, page, status, tei, voyage, weaviate
from api.endpoint import JSON, Endpoint, Host, error_response
from api.openapi import document
from api.operations import Api, Operation
from api.refusal import Refusal
from settings import access

OPERATIONS: Sequence[Operation] = [
    *openai.OPERATIONS,
    *tei.OPERATIONS,
    *gemini.OPERATIONS,
    *ollama.OPERATIONS,
    *cohere.OPERATIONS,
    *voyage.OPERATIONS,
    *weaviate.OPERATIONS,
    *status.OPERATIONS,
]
API_OF = {(each.method, each.path): each.api for each in OPERATIONS}
OF_BROWSERS = {b"origin", b"sec-fetch-site"}
SITE_HEADERS = {*OF_BROWSERS, b"host", b"x-forwarded-host"}


def make_app(host: Host, origins: Sequence[str] = ()) -> ASGIApp:
    """Return the application. Pages of other sites may call it from a browser only if their `origins` are listed."""
    routes: list[Route] = []
    fixed: dict[tuple[str, str], ASGIApp] = {}
    for each in OPERATIONS:
        endpoint: ASGIApp = Endpoint(each, host)
        if (each.method, each.path) == ("GET", "/"):
            endpoint = page.ForBrowsers(endpoint)
        # A redirect would lose a proxy's https:// and prefix. The slash comes first, as {model:path} would match it.
        for path in dict.fromkeys((f"{each.path.rstrip('/')}/", each.path)):
            routes.append(Route(path, endpoint, methods=[each.method]))
            if "{" not in path:
                fixed[each.method, path] = endpoint
    routes += [Route("/openapi.json", _openapi), *docs.ROUTES, *page.ROUTES]
    others = Starlette(routes=routes, exception_handlers={HTTPException: _lost})
    others.router.redirect_slashes = False
    checked = SiteCheck(FixedPaths(others, fixed), origins)
    if not origins:
        return checked
    return CORSMiddleware(
        checked,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-truncated", "x-prompted", "x-model", "x-compute-tokens", "retry-after"],
    )


class SiteCheck:
    """Refuses what a browser sends for a page of an unlisted site. CORS would hide the answer, but do the work."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that only reads, or whose page is allowed."""
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            sent = {name: value.decode("latin-1") for name, value in scope["headers"] if name in SITE_HEADERS}
            if sent.keys() & OF_BROWSERS and self._is_foreign(sent):
                problem = "Origin: a page of another site may not ask this server; list its origin in API_ORIGINS"
                refused = error_response(_api_of(scope["method"], scope["path"]), Refusal("origin", problem))
                return await refused(scope, receive, send)
        await self._app(scope, receive, send)

    def _is_foreign(self, sent: Mapping[bytes, str]) -> bool:
        site = sent.get(b"sec-fetch-site", "")
        if site == "same-origin":  # the browser knows, even behind a proxy that replaces Host
            return False
        hosts = [sent[name] for name in (b"host", b"x-forwarded-host") if name in sent]
        return access.is_foreign(sent.get(b"origin", ""), hosts, site, self._origins)


class FixedPaths:
    """Finds the operations whose paths have no variables at once; Starlette would try each route in turn."""

    def __init__(self, app: ASGIApp, endpoints: Mapping[tuple[str, str], ASGIApp]) -> None:
        self._app, self._endpoints = app, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the operation, or pass on a request for any other path."""
        found = self._endpoints.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        await (found or self._app)(scope, receive, send)


async def _openapi(_: Request) -> Response:
    return Response(_encoded_document(), media_type=JSON)


@functools.cache
def _encoded_document() -> bytes:
    return msgspec.json.encode(document(OPERATIONS))


async def _lost(request: Request, error: Exception) -> Response:
    """Answer a path that no API has, or a method that its path does not have."""
    kind = "method" if isinstance(error, HTTPException) and error.status_code == 405 else "path"
    problem = f"{request.method} {request.url.path[:80]}: there is no such operation; /docs lists all of them"
    return error_response(_api_at(request.url.path), Refusal(kind, problem))


def _api_of(method: str, path: str) -> Api:
    """Return the API of an operation, or for an unknown one the API whose paths look like this."""
    return API_OF.get((method, path.rstrip("/") or "/")) or _api_at(path)


def _api_at(path: str) -> Api:
    """Return the API whose clients ask for paths like this."""
    if path.startswith("/v1beta/") or re.fullmatch("/v1/models/.*:.*", path):
        return gemini.API
    if path.startswith("/v1/contextualizedembeddings"):
        return voyage.API
    return {"api": ollama.API, "v2": cohere.API, "weaviate": weaviate.API}.get(path.split("/")[1], openai.API)
