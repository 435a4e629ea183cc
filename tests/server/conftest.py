"""The real server, coglet, on the small checkpoint: one for all tests here."""

from collections.abc import Iterator

import pytest

from scripts.server import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server("small") as running:
        yield running
