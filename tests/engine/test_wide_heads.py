"""Heads that are wider than FlashAttention takes, on the GPU or in Triton's interpreter, against PyTorch."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.attention import grouped_attention
from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.kernels import FUSED, PLAIN
from engine.kernels.qkv_attention import attention_fused
from engine.kernels.triton_import import AVAILABLE
from engine.model import FLOAT16, FLOAT32
from engine.selection import ALLOWED_ROUNDING_ERRORS, attention_error
from lab.checkpoints.make_random import make_second
from lab.checkpoints.second import NARROW
from tests.support.triton_interpreter import mend
from tests.support.vectors import errors, random_ids, segments_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.usefixtures("interpreter"), pytest.mark.skipif(not AVAILABLE, reason="needs Triton")]


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        mend(monkeypatch)


@pytest.mark.parametrize(
    ("window", "dtype", "is_packed"),
    [(None, torch.float16, True), (20, torch.float16, False), (20, torch.float32, True)],
    ids=["of one projection", "apart", "float32"],
)
def test_heads_wider_than_flash_attention_takes(window: int | None, dtype: torch.dtype, is_packed: bool) -> None:
    lengths, heads, width = [1, 2, 37], 4, 512
    qkv = torch.randn(sum(lengths), heads + 2, width, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    q, k, v = qkv.split([heads, 1, 1], dim=1)
    if not is_packed:
        q, k, v = q.clone(), k.clone(), v.clone()
    segments = segments_of(lengths, DEVICE)
    expected = grouped_attention(q.float(), k.float(), v.float(), segments, window, width**-0.5)
    mixed = attention_fused(q, k, v, segments, window, width**-0.5)
    allowed = 4e-3 if dtype == torch.float16 else 1e-5
    assert mixed.dtype == dtype and (mixed.float() - expected).abs().max() <= allowed


@torch.inference_mode()
@pytest.mark.usefixtures("flash_on_cpu")
def test_the_network_of_the_second_generation_with_fused_kernels(tmp_path: Path) -> None:
    """Its full layers get heads of width 512, so the tiles are used, and the small sizes of the others."""
    make_second(directory := tmp_path / "wide", replace(NARROW, layers=2, full_head_dim=512, per_layer=32))
    for numbers, limit in ((FLOAT32, 1e-9), (FLOAT16, 1e-4)):
        network = load_network(directory, read_architecture(directory), numbers, DEVICE)
        lengths = [4, 1, 12]
        ids, segments = torch.tensor(random_ids(17), dtype=torch.int32, device=DEVICE), segments_of(lengths, DEVICE)
        vectors = {}
        for network.kernels in (PLAIN, FUSED):
            vectors[network.kernels] = network(ids, segments).cpu().numpy()
        assert errors(vectors[FUSED], vectors[PLAIN])[0] <= limit
    assert attention_error(FUSED.attention, network, (1, 2, 21)) <= ALLOWED_ROUNDING_ERRORS
