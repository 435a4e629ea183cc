"""The engine under test, and the expected vectors of the common rows."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from engine import load
from engine.packed import PackedEngine
from tests.support.corpora import ROWS, TEXTS, embed_alone

# Of one checkpoint and number format, for all runs of a module: most runs are of a few rows.
load_once = cache(load)


@pytest.fixture(scope="module", autouse=True)
def one_engine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.load", load_once)
        yield


@pytest.fixture(scope="session")
def engine(small: Path) -> PackedEngine:
    """The default engine on the small checkpoint."""
    return PackedEngine(small, "cpu")


@pytest.fixture(scope="session")
def expected(engine: PackedEngine) -> np.ndarray:
    """The vectors of ROWS, each computed alone."""
    return embed_alone(engine, TEXTS, [row["head"] for row in ROWS], "retrieval_document")
