"""The page at / for browsers, which shows what the vectors do. Its files are those of the folder beside this one."""

import asyncio
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from api.names import FIRST, SECOND
from api.static import SAFE, TYPES, StaticFile, answer
from settings.version import VERSION
from tasks import PROMPTS, SECOND_PROMPTS

FOLDER = Path(__file__).parent / "page"
# All that the page loads and calls is on this server, and nothing of it stands within the page itself.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; worker-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {**SAFE, "content-security-policy": POLICY, "cross-origin-opener-policy": "same-origin"}


@dataclass(frozen=True, slots=True)
class Site:
    """The page, and the files that it loads from `page/<version>/` by their names there."""

    page: StaticFile
    files: dict[str, StaticFile]
    version: str
    """Differs when any file does, so browsers may keep what they have for good."""


class ForBrowsers:
    """Answers a browser with the page, and whoever else asks for / as before."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Browsers are told by `text/html` in the header Accept, which no API's client sends."""
        if "text/html" in Headers(scope=scope).get("accept", ""):
            page = (await asyncio.to_thread(site)).page
            return await answer(Request(scope), page, "no-cache", HEADERS)(scope, receive, send)
        await self._app(scope, receive, send)


@cache
def site() -> Site:
    """Return all files. The first call reads and compresses them, so it belongs in a thread."""
    paths = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*")) if path.suffix in TYPES}
    contents = {name: path.read_bytes() for name, path in paths.items()}
    source = contents.pop("index.html").decode()
    version = hashlib.sha256(b"".join(hashlib.sha256(each).digest() for each in contents.values())).hexdigest()[:12]
    modules = [name for name in contents if name.endswith(".js") and "/" not in name and name not in LATER]
    preloads = "\n".join(f'<link rel="modulepreload" href="page/{version}/{name}">' for name in modules)
    known = {"prompts": {FIRST[0]: PROMPTS, SECOND[0]: SECOND_PROMPTS}, "version": VERSION}
    facts = msgspec.json.encode(known).decode().replace("<", "\\u003c")
    for name, value in {"VERSION": version, "PRELOADS": preloads, "FACTS": facts}.items():
        source = source.replace(f"{{{{{name}}}}}", value)
    files = {name: StaticFile.of(each, paths[name].suffix) for name, each in contents.items()}
    return Site(StaticFile.of(source.encode(), ".html"), files, version)


# A script of the head, and what only a worker loads.
LATER = ("pca.js",)


async def _file(request: Request) -> Response:
    kept = await asyncio.to_thread(site)
    file = kept.files.get(request.path_params["name"])
    if file is None or request.path_params["version"] != kept.version:
        raise HTTPException(404)
    return answer(request, file, "public, max-age=31536000, immutable")


ROUTES = [Route("/page/{version}/{name:path}", _file)]
