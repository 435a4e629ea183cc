"""The real servers on the small checkpoint: coglet, one for all tests here, and the other APIs."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from container.server import Server, running_server
from tests.support.apis import running_apis


@pytest.fixture(scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which `server` keeps temporary files."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="session")
def server(temporary: Path) -> Iterator[Server]:
    settings = {"FILE_ADDRESSES": "public,127.0.0.1", "TMPDIR": str(temporary)}
    with running_server("small", settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    """A client of the other APIs' server, which embeds at the end as at the start and has logged no error."""
    texts = {"inputs": ["Are you well?", "I am."]}
    with running_apis() as running, httpx.Client(base_url=running.url, timeout=60) as open_client:
        before = open_client.post("/embed", json=texts).json()
        yield open_client
        assert open_client.post("/embed", json=texts).json() == before
        assert open_client.get("/live").json() == {"status": "ready"}
        log = running.log.read_text(encoding="utf-8")
        assert "Traceback" not in log and "ERROR" not in log, log
