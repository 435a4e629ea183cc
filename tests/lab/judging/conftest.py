"""One server with switchable faults, and one judgement of it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.clients import Client
from lab.judging.expected import Expected
from lab.judging.judge import judge
from lab.judging.judgement import Judgement
from tests.support.wrong_server import Faults, WrongServer, running_wrong_server

Judged = Callable[..., Judgement]


@pytest.fixture(scope="session")
def small_vectors(small: Path) -> Expected:
    return Expected(small)


@pytest.fixture(scope="module")
def wrong_server(small: Path, small_vectors: Expected) -> Iterator[WrongServer]:
    with running_wrong_server(small, small_vectors) as server:
        yield server


@pytest.fixture
def judged(wrong_server: WrongServer, small_vectors: Expected) -> Iterator[Judged]:
    """Return a function that judges the server with some faults through an API."""

    def with_faults(api: str, client_prompts: bool = False, **faults: object) -> Judgement:
        wrong_server.faults = Faults(**faults)  # type: ignore[arg-type]
        return judge(Client(wrong_server.url, api), small_vectors, client_prompts)

    yield with_faults
    wrong_server.faults = Faults()
