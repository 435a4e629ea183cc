"""The Triton kernels against their twins, on the GPU or in Triton's interpreter; and how the ones to use are chosen."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.checkpoint import load_network, read_architecture
from engine.kernels import FUSED, PLAIN, Kernels, selection
from engine.kernels.rotary import Rotation
from engine.kernels.selection import Samples, describe, kernels_for, trusted
from engine.kernels.triton_import import AVAILABLE, block
from engine.model import FLOAT16, FLOAT32, Network, NumberFormat
from tests.support.vectors import FULL, errors, random_ids, segments_of
from weights import SMALL

ROOT = SMALL.parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = [field.name for field in fields(Kernels)]
# Heads of the genuine model; more of them, which are no power of two, of odd sizes.
SHAPES = [FULL, replace(FULL, hidden=200, heads=6, kv_heads=3, head_dim=48, intermediate=136)]

pytestmark = pytest.mark.usefixtures("interpreter")
needs_triton = pytest.mark.skipif(not AVAILABLE, reason="needs Triton")


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 13, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=["genuine", "odd"])
@pytest.mark.parametrize("name", NAMES)
def test_a_kernel_is_its_twin(name: str, shape: Any, tokens: int, dtype: torch.dtype) -> None:
    samples = Samples(shape, dtype, DEVICE, tokens)
    assert samples.compare(name, getattr(FUSED, name), getattr(PLAIN, name)) == ""


@needs_triton
def test_rescaled_outliers_stay_finite_and_right() -> None:
    """8e5 in the stream is 6250 as float16 holds it, and with epsilon / 2**14 its norm is that of 8e5."""
    shift, gain = 7, torch.ones(768, device=DEVICE)
    x, y = (torch.randn(5, 768, device=DEVICE) * scale for scale in (1e3, 100))
    x[:, 7] = 8e5
    pre = SimpleNamespace(gain=gain, eps=1e-6, dtype=torch.float32)
    post = SimpleNamespace(gain=gain * 3e4, eps=1e-6, dtype=torch.float32)
    expected = PLAIN.add_norm(x.clone(), y, post, pre)
    rescaled = SimpleNamespace(gain=gain, eps=1e-6 * 4.0**-shift, dtype=torch.float16)
    post.gain = post.gain * 2.0**-shift
    stream = (x * 2.0**-shift).half()
    found = FUSED.add_norm(stream, y.half(), post, rescaled)
    assert stream.isfinite().all() and (found.float() - expected).abs().max() < 4e-3 * expected.abs().max()
    tiny = torch.full((1, 768), 1e-4, device=DEVICE)  # where epsilon decides
    expected = PLAIN.add_norm(tiny.clone(), torch.zeros_like(tiny), post, pre)
    found = FUSED.add_norm(tiny * 2.0**-shift, torch.zeros_like(tiny), post, rescaled)
    assert torch.allclose(found.float(), expected, rtol=1e-3)


@needs_triton
@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["twin", "fused"])
def test_no_mean_meets_another_text(kernels: Kernels) -> None:
    x = torch.randn(70, 96, device=DEVICE)
    x[3:40] = torch.nan
    cu_seqlens = torch.tensor([0, 3, 40, 70, 70, 70], dtype=torch.int32, device=DEVICE)
    means = kernels.segment_mean(x, cu_seqlens)
    assert torch.allclose(means[[0, 2]], torch.stack([x[:3].mean(0), x[40:].mean(0)]), atol=1e-6)
    assert means[1].isnan().all() and (means[3:] == 0).all()


@needs_triton
@torch.inference_mode()
@pytest.mark.parametrize(("numbers", "limit"), [(FLOAT32, 1e-6), (FLOAT16, 1e-5)], ids=["float32", "float16"])
def test_the_whole_network(numbers: NumberFormat, limit: float) -> None:
    architecture, segments = read_architecture(SMALL), segments_of([9, 1, 4], DEVICE)
    ids = torch.tensor(random_ids(14), dtype=torch.int32, device=DEVICE)
    twin, fused = (
        load_network(SMALL, architecture, numbers, DEVICE, kernels)(ids, segments).cpu().numpy()
        for kernels in (PLAIN, FUSED)
    )
    cosine, norm = errors(fused, twin)
    print(f"1 - cosine {cosine:.1e}, norm {norm:.1e}")
    assert cosine <= limit and norm <= 1e-2


@pytest.mark.parametrize("capability", [80, 86, 89, 90])
def test_every_kernel_compiles(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.support.compile_kernels", str(capability)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    compiled = json.loads(run.stdout)
    assert len({kernel["kernel"] for kernel in compiled}) == len(NAMES)
    for kernel in compiled:
        assert f"sm_{capability}" in kernel["target"] and kernel["cubin_bytes"] > 0
        # 16 bytes of float16 at once; without them memory is read at a fraction of its speed.
        assert kernel["wide_accesses"] >= 3 and kernel["shared_bytes"] < 16_384, kernel


def of(result: Callable[..., Any], spoil: Callable[[Any], Any]) -> Callable[..., Any]:
    """A kernel whose result is spoiled afterwards."""
    return lambda *args: spoil(result(*args))


def raising(*args: Any) -> Any:
    raise RuntimeError("ptxas says no")


FAULTS: list[tuple[str, Callable[..., Any], str]] = [
    ("add_norm", of(PLAIN.add_norm, lambda x: x * 1.01), "is off by"),
    ("add_norm", lambda x, y, post, pre: PLAIN.add_norm(x.clone(), y, post, pre), "is off by"),
    ("embed_norm", of(PLAIN.embed_norm, lambda pair: (pair[0], pair[0])), "is off by"),
    ("segment_mean", of(PLAIN.segment_mean, lambda x: x * torch.nan), "is off by nan"),
    ("segment_mean", of(PLAIN.segment_mean, lambda x: x[:-1]), "returns torch.float32 [3, 768], not"),
    ("geglu", of(PLAIN.geglu, lambda x: x.double()), "returns torch.float64"),
    ("norm_rotate", raising, "raised RuntimeError: ptxas says no"),
    ("norm_rotate", lambda qk, norm, rotation: PLAIN.norm_rotate(qk.add_(1) - 1, norm, rotation).flip(1), "is off by"),
]


@pytest.mark.parametrize(("name", "kernel", "words"), FAULTS)
def test_a_kernel_that_is_wrong_is_replaced(
    name: str, kernel: Callable[..., Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = trusted(replace(PLAIN, **{name: kernel}), FULL, torch.float32, DEVICE)
    assert chosen == PLAIN
    assert [record.getMessage() for record in caplog.records if f"kernel {name} " in record.getMessage()]
    assert words in caplog.text and "PyTorch's own is used in its place" in caplog.text


@needs_triton
def test_a_new_gpu_gets_every_fused_kernel_and_an_old_one_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")

    def on_this_device(kernels: Kernels, architecture: Any, dtype: torch.dtype, device: torch.device) -> Kernels:
        assert device == cuda
        return trusted(kernels, architecture, dtype, DEVICE)

    monkeypatch.setattr(selection, "trusted", on_this_device)
    for capability, expected in (((8, 0), FUSED), ((9, 0), FUSED), ((7, 5), PLAIN)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, found=capability: found)
        assert kernels_for(FULL, torch.float16, cuda) == expected
    assert kernels_for(FULL, torch.float32, torch.device("cpu")) == PLAIN
    assert describe(replace(FUSED, geglu=PLAIN.geglu)) == "4 of 5 kernels fused"


def test_a_cpu_does_not_import_triton() -> None:
    code = "import sys, engine.packed; print('triton' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert run.stdout.strip() == "False"


def test_positions_beyond_the_limit_have_angles_too() -> None:
    positions = torch.tensor([5000, 2047, 3])
    cos, _ = Rotation(positions, 5001, 1e4, 8).of_tokens
    angles = positions[:, None].float() * (1.0 / 1e4 ** (torch.arange(0, 8, 2) / 8))
    assert torch.equal(cos[:, 0], angles.cos())


def test_blocks() -> None:
    assert [block(size) for size in (1, 2, 3, 768, 1024, 1025)] == [1, 2, 4, 1024, 1024, 2048]


def test_networks_take_the_twins_unless_told() -> None:
    assert Network(replace(FULL, windows=(None,)), FLOAT32).kernels is PLAIN
