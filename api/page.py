"""The page to try the APIs: Swagger UI on /openapi.json. Everything that it loads comes from this server."""

import hashlib
from base64 import b64encode

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from starlette.routing import Route
from swagger_ui_bundle import swagger_ui_path

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
ASSETS = {
    "favicon-32x32.png": "image/png",
    "swagger-ui.css": "text/css; charset=utf-8",
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
}
START_HASH = b64encode(hashlib.sha256(START.encode()).digest()).decode()
# No other site is loaded from or called, and no other page may embed this one. Swagger sets styles inline.
POLICY = (
    f"default-src 'none'; script-src 'self' 'sha256-{START_HASH}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


async def _docs(_: Request) -> Response:
    return HTMLResponse(PAGE, headers=HEADERS)


async def _docs_above(_: Request) -> Response:
    return RedirectResponse("../docs")


def _asset(name: str, media_type: str) -> Route:
    async def send(_: Request) -> Response:
        headers = HEADERS | {"cache-control": "public, max-age=3600"}
        return FileResponse(str(swagger_ui_path / name), media_type=media_type, headers=headers)

    return Route(f"/docs/{name}", send)


ROUTES = [Route("/docs", _docs), Route("/docs/", _docs_above), *(_asset(*each) for each in ASSETS.items())]
