"""sentence-transformers itself behind TEI's and OpenAI's shapes: a right server that has nothing of ours."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from container.server import free_port
from tests.support.servers import eventually


@contextmanager
def running_reference_server(checkpoint: Path, dtype: str) -> Iterator[str]:
    """Yield the URL of a server that calls `encode`, for the length of a with block."""
    from sentence_transformers import SentenceTransformer  # takes seconds

    options: Any = {"dtype": dtype}
    model = SentenceTransformer(str(checkpoint), device="cpu", local_files_only=True, model_kwargs=options)

    def encode(texts: list[str], prompt_name: str | None, dimensions: int | None) -> list[list[float]]:
        vectors = model.encode(texts, prompt_name=prompt_name, truncate_dim=dimensions, normalize_embeddings=True)
        return [[float(number) for number in row] for row in vectors]

    def too_long(texts: list[str]) -> bool:
        return any(len(model.tokenizer(text)["input_ids"]) > 2_048 for text in texts)

    async def tei(request: Request) -> JSONResponse:
        asked = await request.json()
        if asked.get("prompt_name") not in (None, *model.prompts):
            return JSONResponse({"error": "no such prompt", "error_type": "Validation"}, 422)
        if not asked.get("truncate") and too_long(asked["inputs"]):
            return JSONResponse({"error": "too long", "error_type": "Validation"}, 413)
        return JSONResponse(encode(asked["inputs"], asked.get("prompt_name"), asked.get("dimensions")))

    async def openai(request: Request) -> JSONResponse:
        asked = await request.json()
        rows = encode(asked["input"], None, asked.get("dimensions"))
        data = [{"index": i, "embedding": row, "object": "embedding"} for i, row in enumerate(rows)]
        return JSONResponse({"data": data, "model": asked["model"], "object": "list"})

    routes = [Route("/embed", tei, methods=["POST"]), Route("/v1/embeddings", openai, methods=["POST"])]
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started, "the server has started")
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
