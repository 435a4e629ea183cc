"""An engine that records its batches, and batchers on it."""

from collections.abc import Callable, Iterator

import pytest

from batching.batcher import Batcher
from engine.packed import PackedEngine
from tests.support.engines import RecordingEngine
from weights import SMALL


@pytest.fixture(scope="session")
def small_engine() -> PackedEngine:
    """The packed engine on the small checkpoint."""
    return PackedEngine(SMALL, "cpu")


@pytest.fixture
def engine(small_engine: PackedEngine) -> Iterator[RecordingEngine]:
    """The same, recording its batches."""
    recording = RecordingEngine(small_engine)
    yield recording
    recording.release()


@pytest.fixture
def make_batcher(engine: RecordingEngine) -> Iterator[Callable[..., Batcher]]:
    """A function that returns a batcher on `engine`, closed at the end of the test."""
    batchers: list[Batcher] = []

    def make(max_waiting_tokens: int = 10**9, cache_bytes: int = 0) -> Batcher:
        batchers.append(Batcher(engine, max_waiting_tokens, cache_bytes))
        return batchers[-1]

    yield make
    engine.release()
    for batcher in batchers:
        batcher.close()
