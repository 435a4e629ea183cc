"""The APIs of a service on the small checkpoint, on a real port of this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from api.server import ApiServer
from container.server import free_port
from service import Service
from texts.options import Options
from texts.request import read_texts

MODEL = "embeddinggemma-300m"
Expected = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    running = Service("small")
    running.start()
    yield running
    running.close()


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    """A client of the APIs. /predictions computes with the same service, which tests/server/test_api.py shows."""
    with client_of(service) as open_client:
        yield open_client


@contextmanager
def client_of(service: Service) -> Iterator[httpx.Client]:
    """Serve the APIs of a service within it, to its client."""
    port = free_port()
    apis = ApiServer(service, "127.0.0.1", port)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as open_client:
        yield open_client
    apis.close()


@pytest.fixture(scope="session")
def expected(service: Service) -> Expected:
    """The vectors of texts, [n, width], by the service alone; `titles`, and the fields of Options, by name."""

    def embed(*texts: str, titles: list[str] | None = None, **options: object) -> np.ndarray:
        import asyncio

        request = read_texts(texts=list(texts), titles=titles)
        return asyncio.run(service.embed(request, Options(**options))).vectors  # type: ignore[arg-type]

    return embed
