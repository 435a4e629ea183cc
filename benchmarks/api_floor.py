"""An application that computes nothing and answers an embeddings request with as many bytes, to time a framework alone.

python -m benchmarks.api_floor --port 7001                                       # what this project uses
python -m benchmarks.api_floor --port 7001 --framework fastapi --server granian  # others, where they are installed
"""

import argparse
import base64
from typing import Any

import msgspec
import numpy as np
import uvicorn

from api.openai import Embedding, EmbeddingsAnswer, EmbeddingsRequest, Usage

CONSTANT = base64.b64encode(np.full(768, 768**-0.5, dtype="<f4").tobytes()).decode()
ANSWER = EmbeddingsAnswer([Embedding(0, CONSTANT)], "none", Usage(12, 12))
PATH = "/v1/embeddings"


def starlette() -> Any:
    """Return the application in Starlette, with msgspec for JSON."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def embeddings(request: Request) -> Response:
        msgspec.json.decode(await request.body(), type=EmbeddingsRequest)
        return Response(msgspec.json.encode(ANSWER), media_type="application/json")

    return Starlette(routes=[Route(PATH, embeddings, methods=["POST"])])


def fastapi() -> Any:
    """Return the application in FastAPI, with pydantic for the request."""
    import fastapi
    import pydantic

    class Body(pydantic.BaseModel):
        input: str | list[str]
        model: str = ""
        encoding_format: str | None = None
        dimensions: int | None = None

    application = fastapi.FastAPI()

    @application.post(PATH)
    async def embeddings(body: Body) -> fastapi.Response:
        return fastapi.Response(msgspec.json.encode(ANSWER), media_type="application/json")

    return application


def litestar() -> Any:
    """Return the application in Litestar, which uses msgspec itself."""
    import litestar

    @litestar.post(PATH, status_code=200)
    async def embeddings(data: EmbeddingsRequest) -> EmbeddingsAnswer:
        return ANSWER

    return litestar.Litestar([embeddings])


FRAMEWORKS = {"starlette": starlette, "fastapi": fastapi, "litestar": litestar}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--framework", choices=FRAMEWORKS, default="starlette")
    parser.add_argument("--server", choices=["uvicorn", "granian"], default="uvicorn")
    args = parser.parse_args()
    if args.server == "uvicorn":
        application = FRAMEWORKS[args.framework]()
        uvicorn.run(application, port=args.port, loop="uvloop", http="httptools", log_level="warning", access_log=False)
        return
    import granian
    from granian.constants import Interfaces, Loops

    target = f"benchmarks.api_floor:{args.framework}"
    granian.Granian(
        target, port=args.port, interface=Interfaces.ASGI, loop=Loops.uvloop, factory=True, log_access=False
    ).serve()


if __name__ == "__main__":
    main()
