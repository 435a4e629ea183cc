"""Matmuls with GeGLU at their end, and of few rows: in Triton's interpreter or on the GPU, against torch's."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.kernels import PLAIN, launching, matmuls
from engine.kernels.launching import SHORT_PASS, dependent
from engine.kernels.matmuls import FEW, LARGER, SMALLER, TILES, Tile, matmul, matmul_fused, tile_for
from engine.kernels.triton_import import AVAILABLE
from engine.model import FLOAT16, Network
from engine.native.choice import trial
from engine.selection import describe, install
from tests.support.triton_interpreter import mend
from weights import SMALL

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DESCRIBED = LARGER._replace(described=True)
EACH_TILE = {"few": FEW, "smaller": SMALLER, "larger": LARGER, "described": DESCRIBED}
if DEVICE.type == "cuda":  # which may not have the memory, or no descriptors
    EACH_TILE = {"few": FEW, "many": tile_for(2 * SHORT_PASS, DEVICE)}

pytestmark = [pytest.mark.usefixtures("interpreter"), pytest.mark.skipif(not AVAILABLE, reason="needs Triton")]


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        mend(monkeypatch)


def drawn(tokens: int, inner: int, outputs: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(tokens, inner, generator=generator), torch.randn(outputs, inner, generator=generator)
    return (x * 2).to(DEVICE, dtype), (weight * inner**-0.5).to(DEVICE, dtype)


# Rows, their size and the weight's rows: of one tile, and of more than GROUP, where no tile ends with the matrix.
SIZES = {"few": [(1, 768, 272), (150, 48, 80)], "many": [(200, 80, 400)]}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("how", "sizes"),
    [pytest.param(how, sizes, id=f"{name}-{sizes}") for name, how in EACH_TILE.items()
     for sizes in SIZES["few" if how == FEW else "many"]],
)  # fmt: skip
def test_each_way_computes_what_torch_does(
    how: Tile, sizes: tuple[int, int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every number is written, and NaN of other rows meets none."""
    monkeypatch.setattr(matmuls, "tile_for", lambda *_: how)
    x, weight = drawn(*sizes, dtype)
    x[2::7] = torch.nan
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(torch.inf))
    scales = torch.rand(len(x), generator=torch.Generator().manual_seed(1)).to(DEVICE), 2.0
    for options in ((False,), (True,), (False, *scales), (True, *scales)):
        out, exact = matmul_fused(x, weight, *options), matmul(x.float(), weight.float(), *options)
        assert out.shape == exact.shape and out.dtype == dtype
        assert torch.equal(out.isnan(), exact.isnan())
        error = ((out.float() - exact).abs() / (0.5 + exact.abs())).nan_to_num(posinf=torch.inf).max().item()
        print(f"{dtype}: largest error {error:.1e}")
        assert error <= torch.finfo(dtype).eps


def test_a_gpu_is_given_the_tiles_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, chosen = torch.device("cuda"), []
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, version=capability: version)
        assert tile_for(SHORT_PASS, cuda) == FEW
        chosen.append(tile_for(SHORT_PASS + 1, cuda))
    assert chosen == [LARGER, SMALLER, SMALLER, DESCRIBED, DESCRIBED, SMALLER] and TILES[9, 0] == DESCRIBED


def test_only_short_passes_on_gpus_that_were_shown_to_are_launched_dependently(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, off = torch.device("cuda"), {"DEPENDENT": False}
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert dependent(SHORT_PASS, cuda) == off
    monkeypatch.setattr(launching, "SHOWN_ON", frozenset({(9, 0)}))
    assert dependent(SHORT_PASS, cuda) == {"DEPENDENT": True, "launch_pdl": True}
    assert dependent(SHORT_PASS + 1, cuda) == dependent(1, torch.device("cpu")) == off


@torch.inference_mode()
def test_a_network_keeps_both_and_uses_them_for_every_matmul(
    second_weights: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EmbeddingGemma 2's, which has all that the first one has, and three matmuls more in a layer."""
    monkeypatch.setattr(matmuls, "FEW", FEW if DEVICE.type == "cuda" else SMALLER)  # the interpreter likes few programs
    network, used = two_layers(second_weights), []

    def counted(x: Tensor, weight: Tensor, gated: bool = False) -> Tensor:
        used.append((len(x) <= SHORT_PASS, gated))
        return matmul_fused(x, weight, gated)

    both = replace(PLAIN, gate_up=counted, few_rows=counted)
    with caplog.at_level(logging.INFO):
        assert install(network, both, lengths=(1, SHORT_PASS + 5)) and network.kernels == both
    layers = len(network.layers)  # compared with gate_up alone, then with both
    assert not caplog.records and used.count((False, True)) == 2 * layers and used.count((True, True)) == layers
    assert used.count((True, False)) == 6 * layers and (False, False) not in used
    assert describe(both).endswith("kernels fused, GeGLU in its matmul, matmuls of few rows")


def two_layers(checkpoint: Path = SMALL) -> Network:
    """Two layers of the checkpoint's sizes, with random weights; on a GPU all of its own."""
    a = read_architecture(checkpoint)
    return load_network(checkpoint, a, FLOAT16, DEVICE) if DEVICE.type == "cuda" else trial(a, FLOAT16)


def changed(change: Callable[[Tensor, bool], Tensor]) -> Callable[..., Tensor]:
    return lambda x, weight, gated=False: change(matmul(x, weight, gated), gated)


def swapped(x: Tensor, weight: Tensor, gated: bool = False) -> Tensor:
    return matmul(x, weight.roll(len(weight) // 2, 0) if gated else weight, gated)


def raising(*_: object, **__: object) -> Tensor:
    raise RuntimeError("ptxas says no")


FAULTS = {
    "gate and up swapped": (swapped, "is off by"),
    "the last row unwritten": (changed(lambda x, _: x.index_fill(0, torch.tensor([len(x) - 3]), torch.nan)), "off by"),
    "a column late": (changed(lambda x, gated: x.roll(1, 1) if gated else x), "is off by"),
    "raising": (raising, "raised RuntimeError: ptxas says no"),
}


@pytest.mark.skipif(DEVICE.type == "cuda", reason="says nothing about a GPU")
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["gate_up", "few_rows"])
def test_what_is_wrong_is_left_out_and_costs_nothing_else(
    name: str, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    (kernel, words), network = FAULTS[fault], two_layers()
    wrong: dict[str, Any] = {name: kernel}
    none: dict[str, Any] = {name: None}
    right = replace(PLAIN, gate_up=matmul, few_rows=matmul)
    with caplog.at_level(logging.INFO):
        assert install(network, replace(right, **wrong), lengths=(1, 2, 90))
    assert network.kernels == replace(right, **none)
    [record] = caplog.records
    assert record.levelno == logging.INFO and record.getMessage().startswith(f"kernel {name} ")
    assert words in record.getMessage() and "torch's matmul" in record.getMessage()
