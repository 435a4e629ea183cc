"""Norms that matmuls complete, whose weights hold the gains: the same vectors, where the kernels for it are used."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import engine.kernels
import engine.model
from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.kernels import FUSED, MERGED, PLAIN, Kernels
from engine.kernels.launching import SHORT_PASS
from engine.kernels.matmuls import matmul
from engine.kernels.norms import Unnormed
from engine.kernels.qkv_attention import qkv_attention
from engine.kernels.triton_import import AVAILABLE
from engine.linear import Linear
from engine.model import FLOAT16, FLOAT32, Network, NumberFormat
from engine.native.choice import trial
from engine.packing import packed
from engine.selection import describe, install
from tests.support.triton_interpreter import mend
from tests.support.vectors import errors, random_ids
from weights import SMALL

CPU = torch.device("cpu")
WRITTEN = replace(PLAIN, qkv_attention=qkv_attention, gate_up=matmul)
FOLDED = replace(WRITTEN, folded_norms=True)

pytestmark = pytest.mark.usefixtures("interpreter")


@pytest.fixture
def untiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make no list of tiles, which PyTorch's own attention does not need."""
    monkeypatch.setattr(engine.model, "with_tiles", lambda segments, _: segments)


def folded(network: Network) -> list[Linear]:
    return [module for module in network.modules() if isinstance(module, Linear) and module.folded]


@torch.inference_mode()
def vectors(network: Network, kernels: Kernels, *lengths: int) -> Tensor:
    network.kernels = kernels
    return network(*packed([random_ids(length, vocabulary=250) for length in lengths], CPU))[: len(lengths)]


def test_a_product_is_as_large_as_its_row_is_long() -> None:
    """So one that float16 cannot hold, with the gains as they are, becomes one that it can."""
    linear, gain = Linear(3, 64, torch.float16), torch.linspace(-40, 60, 64)
    linear.weight.copy_(torch.randn(3, 64, generator=torch.Generator().manual_seed(0)))
    weight, power = linear.fold(gain)
    assert power.is_integer() and power.hex().startswith("0x1.0000000000000p") and linear.fold(gain)[0] is weight
    assert 0.5 < weight.float().norm(dim=1).max() <= 1
    x = (weight[:1].sign() * 6e3).half()
    exact = F.linear(x.double(), linear.weight.double() * gain.double())
    product = F.linear(x, weight)
    assert exact.abs().max() > torch.finfo(torch.float16).max and product.isfinite().all()
    assert torch.allclose(product.double() * power, exact, rtol=2e-3, atol=exact.abs().max().item() * 1e-3)


def with_larger_stream(numbers: NumberFormat, doublings: int) -> Network:
    network = load_network(SMALL, read_architecture(SMALL), numbers, CPU)
    for layer in network.layers:
        for norm in (layer.get_submodule("post_attention"), layer.get_submodule("post_mlp")):
            norm.get_parameter("gain").mul_(2.0**doublings)
    return network


@pytest.mark.usefixtures("untiled")
@pytest.mark.parametrize("doublings", [0, 17], ids=["small stream", "stream up to 1e6"])
def test_trained_weights_lose_nothing(doublings: int) -> None:
    """Official activations reach 8e5."""
    exact = vectors(with_larger_stream(FLOAT32, doublings), PLAIN, 9, 70, 300).numpy()
    network = with_larger_stream(FLOAT16, doublings)
    written, without = (vectors(network, kernels, 9, 70, 300).numpy() for kernels in (WRITTEN, FOLDED))
    before, after = errors(written, exact)[0], errors(without, exact)[0]
    print(f"1 - cosine to float32: {before:.1e} with norms written, {after:.1e} with norms folded")
    assert after <= 1.5 * before and after <= 1e-5 and (without != written).any()
    assert len(folded(network)) == 2 * len(network.layers) - 1  # the first norm comes with the embedding


ELSEWHERE = {"few": (FLOAT16, SHORT_PASS), "another format": (NumberFormat(torch.float16, torch.float32), 70)}


@pytest.mark.usefixtures("untiled")
@pytest.mark.parametrize(("numbers", "tokens"), ELSEWHERE.values(), ids=list(ELSEWHERE))
def test_elsewhere_no_digit_changes(numbers: NumberFormat, tokens: int) -> None:
    network = trial(read_architecture(SMALL), numbers)
    assert torch.equal(vectors(network, FOLDED, tokens), vectors(network, WRITTEN, tokens)) and not folded(network)


def test_it_is_nothing_without_the_kernels_that_it_needs() -> None:
    assert MERGED.folded_norms and not FUSED.folded_norms
    for kernels in replace(MERGED, qkv_attention=None), replace(MERGED, gate_up=None):
        assert not kernels.folded_norms and replace(kernels, folded_norms=True) == kernels


def when_scaled(name: str, change: Callable[..., Any]) -> dict[str, Any]:
    """A kernel that is wrong only where it has to do with folded norms; `change` gets it and its arguments."""
    kernel, without = getattr(FOLDED, name), {"qkv_attention": 6, "gate_up": 3}.get(name, 0)
    return {name: lambda *args, **options: change(kernel, *args) if len(args) > without else kernel(*args, **options)}


def late(kernel: Callable[..., Any], *args: Any) -> Any:
    out = kernel(*args)
    return out._replace(inverse_rms=out.inverse_rms.roll(1)) if isinstance(out, Unnormed) else out


def raising(*_: Any) -> Tensor:
    raise RuntimeError("ptxas says no")


FAULTS = {
    "rows not scaled": (when_scaled("gate_up", lambda kernel, *args: kernel(*args[:3])), "is off by"),
    "values not scaled": (when_scaled("qkv_attention", lambda kernel, *args: kernel(*args[:6])), "is off by"),
    "the scales of other rows": (when_scaled("add_norm", late), "is off by"),
    "raising": (when_scaled("gate_up", raising), "raised RuntimeError: ptxas says no"),
}


@pytest.mark.usefixtures("untiled")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_left_out_and_costs_nothing_else(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its weights neither."""
    (changed, words), network = FAULTS[fault], trial(read_architecture(SMALL), FLOAT16)
    kernels = replace(FOLDED, **changed)
    with caplog.at_level(logging.INFO):
        assert install(network, kernels, lengths=(1, 2, 90))
    assert network.kernels == replace(kernels, folded_norms=False) and not folded(network)
    [record] = caplog.records
    assert record.levelno == logging.INFO and record.getMessage().startswith(f"kernel folded_norms {words}")
    assert record.getMessage().endswith("; norms that are written are used in its place")


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
def test_what_is_right_is_kept(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels together, as a GPU has them; on few narrow rows, as the interpreter is slow."""
    mend(monkeypatch)
    monkeypatch.setattr(engine.kernels, "SHORT_PASS", 4)
    narrow = replace(read_architecture(SMALL), hidden=32, intermediate=32, head_dim=32, attention_scale=32**-0.5)
    network = trial(narrow, FLOAT16)
    fused = {name: getattr(MERGED, name) for name in ("add_norm", "qkv_attention", "gate_up", "folded_norms")}
    kernels = replace(PLAIN, **fused)
    with caplog.at_level(logging.INFO):
        assert install(network, kernels, lengths=(1, 9)) and network.kernels == kernels
    assert not caplog.records and len(folded(network)) == 3
    assert describe(kernels).endswith("kernels fused, tiled attention, GeGLU in its matmul, norms folded into matmuls")
