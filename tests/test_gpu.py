"""What only a GPU can show: the 16-bit formats and FlashAttention against float32 on the CPU."""

from pathlib import Path

import numpy as np
import pytest
import torch

from engine.attention import GroupedAttention, VarlenAttention
from engine.model import BFLOAT16, FLOAT16, FLOAT32, NumberFormat
from engine.packed import PackedEngine
from tests.vectors import errors, random_ids, segments_of, unit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch sees none")

LENGTHS = [*range(1, 21), 255, 256, 257, 258, 511, 512, 513, 514, 515, 1023, 1024, 1025, 2047, 2048]


@pytest.fixture(scope="module")
def expected(packed: PackedEngine) -> np.ndarray:
    return packed.embed([random_ids(length) for length in LENGTHS])


@pytest.mark.parametrize(("numbers", "limit"), [(FLOAT32, 1e-6), (FLOAT16, 1e-4), (BFLOAT16, 1e-3)])
def test_every_length_alone_and_together(
    checkpoint: Path, expected: np.ndarray, numbers: NumberFormat, limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1e-4 is asked of the format that the engine uses; bfloat16 has an eighth of its precision."""
    on_gpu = PackedEngine(checkpoint, "cuda", numbers)
    texts = [random_ids(length) for length in LENGTHS]
    alone, _ = errors(np.concatenate([on_gpu.embed([ids]) for ids in texts]), expected)
    together, _ = errors(on_gpu.embed(texts), expected)
    print(f"{on_gpu.description}: 1 - cosine {alone:.1e} alone, {together:.1e} together")
    assert max(alone, together) <= limit


def test_neighbours(checkpoint: Path) -> None:
    on_gpu = PackedEngine(checkpoint, "cuda")
    text = random_ids(40)
    alone = unit(on_gpu.embed([text]))[0]
    others = [random_ids(2 + i * 7 % 60, seed=1 + i) for i in range(299)]
    rows = [unit(on_gpu.embed([*others[:i], text, *others[i:]]))[i] for i in (0, 150, 299)]
    largest = max(float(np.abs(row - alone).max()) for row in rows)
    print(f"largest difference that neighbours make in a unit vector: {largest:.1e}")
    assert largest < 1e-3


@pytest.mark.parametrize("window", [None, 256])
def test_varlen_attention_is_the_grouped_one(window: int | None) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("FlashAttention needs compute capability 8.0")
    device, lengths = torch.device("cuda"), [1500, 600, 258, 257, 17, 17, 1]
    q, k, v = (torch.randn(sum(lengths), heads, 256, device=device, dtype=torch.float16) for heads in (3, 1, 1))
    segments = segments_of(lengths, device)
    flash = VarlenAttention(1 / 16)(q, k, v, segments, window)
    expected = GroupedAttention(1 / 16)(q.float(), k.float(), v.float(), segments, window)
    assert (flash - expected).abs().max() < 5e-3


def test_a_large_batch_and_a_small_one_agree(checkpoint: Path) -> None:
    on_gpu = PackedEngine(checkpoint, "cuda")
    texts = [random_ids(length) for length in LENGTHS]
    large = on_gpu.embed(texts)
    on_gpu.batch_tokens = 1_000
    assert errors(on_gpu.embed(texts), large)[0] <= 1e-4
