"""Fixtures that several tests of the engine share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.native import library


@pytest.fixture
def no_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No folder has a binary."""
    library.load.cache_clear()
    monkeypatch.setattr(library, "_folders", lambda: [tmp_path])
    yield
    library.load.cache_clear()
