"""One server with switchable faults, and one judgement of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from judging.expected import Expected
from judging.judge import judge
from judging.judgement import Judgement
from judging.servers import Server
from tests.support.wrong_server import Faults, WrongServer, running_wrong_server

Judged = Callable[..., Judgement]


@pytest.fixture(scope="module")
def wrong_server(small: Path) -> Iterator[WrongServer]:
    with running_wrong_server(small) as server:
        yield server


@pytest.fixture(scope="session")
def small_vectors(small: Path) -> Expected:
    return Expected(small)


@pytest.fixture
def judged(wrong_server: WrongServer, small_vectors: Expected) -> Iterator[Judged]:
    """Return what the judge says of the server with some faults, asked through an API."""

    def with_faults(api: str, client_prompts: bool = False, **faults: object) -> Judgement:
        wrong_server.faults = Faults(**faults)  # type: ignore[arg-type]
        return judge(Server(wrong_server.url, api), small_vectors, client_prompts)

    yield with_faults
    wrong_server.faults = Faults()
