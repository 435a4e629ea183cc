"""All other APIs in this process, on an engine that computes with a fault while it is told to."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.server import ApiServer
from batching.admission import Claim
from batching.request import Cost
from container.server import free_port
from engine.contract import DIMENSIONS, Ranges
from engine.tokenizer import TokenizedText
from lab.judging.expected import Expected
from lab.judging.variants import RIGHT, Variant
from service import Service

Ids = list[int]


@dataclass
class Faults:
    """What the server does wrong; by itself nothing."""

    prompt: Callable[[str], str] = str
    text: Callable[[str], str] = str
    truncate: Callable[[str], str] = str
    uncut: bool = False
    ids: Callable[[Ids], Ids] = list
    variant: Variant = RIGHT
    pool: Callable[[Ids], tuple[int, int]] = lambda ids: (0, len(ids))
    variant_of_request: Callable[[Sequence[Ids]], Variant] | None = None
    vectors: Callable[[Sequence[Ids], np.ndarray], np.ndarray] = lambda ids, vectors: vectors
    """What becomes of the vectors of one request."""


@dataclass
class WrongServer:
    """A running server's URL, and the faults that can be set at any time."""

    url: str
    faults: Faults


@contextmanager
def running_wrong_server(weights: Path, expected: Expected) -> Iterator[WrongServer]:
    """Run the server for the length of a with block. It takes its vectors from `expected`, which computes each once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_MB", "0")
        patch.setenv("DTYPE", "float32")
        service, port = Service(str(weights)), free_port()
        server = WrongServer(f"http://127.0.0.1:{port}", Faults())
        apis = ApiServer(service, "127.0.0.1", port)
        service.start()
        _put_faults(service, server, expected)
        try:
            yield server
        finally:
            apis.close()
            service.close()


def _put_faults(service: Service, server: WrongServer, expected: Expected) -> None:
    tokenizer = service.engine.tokenizer
    encode = tokenizer.encode

    def embed(variant: Variant, token_ids: Sequence[Ids], pool: Callable[[Ids], tuple[int, int]]) -> np.ndarray:
        keys = [(variant, tuple(ids), pool(ids)) for ids in token_ids]
        return np.stack(expected.of_tokens(keys)).astype(np.float32)

    def wrong_encode(
        prompts: Sequence[str], texts: Sequence[str], truncate: Any = "end", limit: int | None = None
    ) -> list[TokenizedText]:
        faults = server.faults
        prompts, texts = list(map(faults.prompt, prompts)), list(map(faults.text, texts))
        if faults.uncut:
            read = [tokenizer.locate(prompt, text)[0] for prompt, text in zip(prompts, texts, strict=True)]
            return [TokenizedText(ids, False) for ids in read]
        return encode(prompts, texts, faults.truncate(truncate), limit)  # type: ignore[arg-type]

    def launch(token_ids: Sequence[Ids], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        faults = server.faults
        read = [faults.ids(list(ids)) for ids in token_ids]
        vectors = embed(faults.variant, read, faults.pool)
        padded = np.pad(vectors, ((0, 0), (0, DIMENSIONS - vectors.shape[1])))  # as the queue takes no other width
        return lambda: padded

    embed_right = service.batcher.embed

    async def embed_request(
        token_ids: Sequence[Ids], ranges: Ranges | None = None, claim: Claim | None = None
    ) -> tuple[np.ndarray, Cost]:
        vectors, cost = await embed_right(token_ids, ranges, claim)
        if choose := server.faults.variant_of_request:
            vectors = embed(choose(token_ids), token_ids, server.faults.pool)
        return server.faults.vectors(token_ids, vectors.copy()), cost

    tokenizer.encode = wrong_encode  # type: ignore[method-assign]
    service._remembered = service._prepare_one  # type: ignore[assignment]  # as each fault reads texts in its own way
    service.engine.launch = launch  # type: ignore[method-assign, assignment]
    service.batcher.embed = embed_request  # type: ignore[method-assign, assignment]
