"""8-bit integers on a checkpoint with channels 30 to 100 times as large as the others."""

from pathlib import Path

import numpy as np
import pytest

from engine.contract import DeviceError
from engine.model import FLOAT32, INT8, Layer
from engine.packed import PackedEngine
from lab.benchmarks.outliers import unmoved
from lab.checkpoints.make_outliers import CHANNELS, TIMES, make
from tests.support.vectors import errors
from weights import SMALL

TEXTS = [
    "Which planet is known as the Red Planet?",
    "Mars looks red from afar, for its dust is full of rust.",
    "A man is playing a flute on the stairs of the station.",
    "Zwei Kinder bauen am Fluss einen Damm aus Steinen.",
    "The council met on Tuesday; its report says that the bridge needs new paint. " * 4,
    "def area(r):\n    return 3.14159 * r * r\n",
]
BOUND = 3e-4
"""Of 1 - cosine; activations of 7 bits, as AVX2 has them, cost four times what those of 8 do."""


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint with large channels."""
    directory = tmp_path_factory.mktemp("outliers") / "outliers"
    make(SMALL, directory)
    return directory


def embed(engine: PackedEngine) -> np.ndarray:
    return engine.embed([text.ids for text in engine.tokenizer.encode([""] * len(TEXTS), TEXTS)])


def test_float32_vectors_are_those_of_the_source(outliers: Path) -> None:
    large, usual = PackedEngine(outliers, "cpu", FLOAT32), PackedEngine(SMALL, "cpu", FLOAT32)
    assert errors(embed(large), embed(usual))[0] < 1e-10
    for a, b in zip(large.network.layers, usual.network.layers, strict=True):
        assert isinstance(a, Layer) and isinstance(b, Layer)
        ratios = (a.pre_mlp.gain / b.pre_mlp.gain).sort().values
        assert ratios[:-CHANNELS].sub(1).abs().max() < 1e-4
        assert 0.999 * TIMES[0] <= ratios[-CHANNELS] <= ratios[-1] <= 1.001 * TIMES[1]
    with pytest.raises(ValueError, match="outliers is not empty; name a new directory"):
        make(SMALL, outliers)


def test_moved_scales_hold_a_bound_that_unmoved_ones_fail(outliers: Path) -> None:
    expected = embed(PackedEngine(outliers, "cpu", FLOAT32))
    try:
        plain = errors(embed(unmoved(outliers)), expected)[0]
    except DeviceError as reason:
        pytest.skip(str(reason))
    moved = errors(embed(PackedEngine(outliers, "cpu", INT8)), expected)[0]
    print(f"1 - cosine {moved:.1e}, with scales that are not moved {plain:.1e}")
    assert moved <= BOUND < plain
