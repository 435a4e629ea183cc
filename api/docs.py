"""The page that describes the APIs: Swagger UI on /openapi.json. Everything that it loads comes from this server."""

import asyncio
import hashlib
from base64 import b64encode
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from swagger_ui_bundle import swagger_ui_path

from api.static import SAFE, answer, read

# By default Swagger has the document validated by its makers' server. It keeps a key only until the page is left.
START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#ui", validatorUrl: null})'
# Addresses are relative, so the page works behind any proxy's prefix.
PAGE = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>EmbeddingGemma</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>{START}</script>
</body></html>
"""
ASSETS = ("favicon-32x32.png", "swagger-ui.css", "swagger-ui-bundle.js")
START_HASH = b64encode(hashlib.sha256(START.encode()).digest()).decode()
# No other site is loaded from or called, and no other page may embed this one. Swagger sets styles inline.
POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{START_HASH}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {**SAFE, "content-security-policy": POLICY}


async def _docs(_: Request) -> Response:
    return HTMLResponse(PAGE, headers=HEADERS)


async def _docs_above(_: Request) -> Response:
    return RedirectResponse("../docs")


def _asset(name: str) -> Route:
    async def send(request: Request) -> Response:
        file = await asyncio.to_thread(read, Path(swagger_ui_path) / name)
        return answer(request, file, "public, max-age=3600", HEADERS)

    return Route(f"/docs/{name}", send)


ROUTES = [Route("/docs", _docs), Route("/docs/", _docs_above), *map(_asset, ASSETS)]
