"""Cog's server with a predictor whose texts are commands, and the front before it."""

from collections.abc import Iterator

import pytest

from container.server import Server, running_server
from tests.support.fronts import TOY, Fronted, fronted


@pytest.fixture(scope="session")
def cog() -> Iterator[Server]:
    """Cog's server alone; it has 8 slots."""
    with running_server(None, settings=TOY, front=False) as server:
        yield server


@pytest.fixture(scope="module")
def front(cog: Server) -> Iterator[Fronted]:
    """A front with the settings that a server has without any, which answers at the end as at the start."""
    with fronted(cog, slots=8) as running:
        yield running
        assert running.post({"input": {"text": "sleep 0"}}).json()["output"] == {"slept": True}
        assert running.front.held_bytes == 0
