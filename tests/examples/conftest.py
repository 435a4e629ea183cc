"""A server in the project's environment, for examples in one that has only them and their databases."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.clients.conftest import ROOT, running_server

RUN_TIMEOUT_S = 300
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    with running_server() as server:
        yield server.predictions


@pytest.fixture(scope="session")
def example(url: str) -> Run:
    """Run an example as a process, as `make example` does."""

    def run(name: str, arguments: Sequence[str] = (), **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", f"examples.{name}", *arguments],
            cwd=ROOT,
            env=os.environ | {"URL": url} | environment,
            capture_output=True,
            text=True,
            timeout=RUN_TIMEOUT_S,
        )

    return run
