"""8-bit integers on a checkpoint with channels 30 to 100 times as large as the others."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

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


def moved_and_plain(directory: Path) -> tuple[float, float]:
    """Return 1 - cosine to float32 at worst in 8 bits, and with scales that are not moved."""
    expected = embed(PackedEngine(directory, "cpu", FLOAT32))
    try:
        moved, plain = (
            errors(embed(engine), expected)[0] for engine in (PackedEngine(directory, "cpu", INT8), unmoved(directory))
        )
    except DeviceError as reason:
        pytest.skip(str(reason))
    print(f"1 - cosine {moved:.1e}, with scales that are not moved {plain:.1e}")
    return moved, plain


def test_moved_scales_hold_a_bound_that_unmoved_ones_fail(outliers: Path) -> None:
    moved, plain = moved_and_plain(outliers)
    assert moved <= BOUND < plain


def test_the_residual_stream_may_have_outliers(second_weights: Path, tmp_path: Path) -> None:
    """Of EmbeddingGemma 2 a matrix reads it without a norm."""
    directory = Path(shutil.copytree(second_weights, tmp_path / "outliers"))
    writers = ("embed_tokens", "post_attention_layernorm", "post_feedforward_layernorm", "post_per_layer_input_norm")
    readers = (
        "input_layernorm",
        "pre_feedforward_layernorm",
        "norm",
        "per_layer_input_gate",
        "per_layer_model_projection",
    )
    times = dict.fromkeys(writers, TIMES[0]) | dict.fromkeys(readers, 1 / TIMES[0])
    weights = load_file(directory / "model.safetensors")
    for name, tensor in weights.items():
        tensor[..., 10:12] *= times.get(name.split(".")[-2], 1.0)
    save_file(weights, directory / "model.safetensors")
    moved, plain = moved_and_plain(directory)
    assert 4 * moved < plain
