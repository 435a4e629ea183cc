"""The engine under test, and what it should make of the common rows."""

from pathlib import Path

import numpy as np
import pytest

from engine.packed import PackedEngine
from tests.support.corpora import ROWS, TEXTS, embed_alone


@pytest.fixture(scope="session")
def engine(small: Path) -> PackedEngine:
    """The default engine on the small checkpoint."""
    return PackedEngine(small, "cpu")


@pytest.fixture(scope="session")
def expected(engine: PackedEngine) -> np.ndarray:
    """The vectors of ROWS, each computed alone."""
    return embed_alone(engine, TEXTS, [row["head"] for row in ROWS], "retrieval_document")
