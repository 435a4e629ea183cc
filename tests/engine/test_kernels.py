"""The Triton kernels against PyTorch's own, on the GPU or in Triton's interpreter, and which a network gets."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.attention import varlen_attention
from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.kernels import FUSED, PLAIN, Kernels, triton_import
from engine.kernels.rotary import Rotation
from engine.kernels.triton_import import AVAILABLE, block
from engine.model import FLOAT16, FLOAT32, Network, NumberFormat
from engine.packing import Segments
from engine.selection import LENGTHS, PIECES, attention_error, candidates, describe, install
from tests.support.kernel_samples import WRONG_WINDOWS, Samples
from tests.support.vectors import FULL, errors, random_ids, segments_of
from weights import SMALL

ROOT = SMALL.parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# FlashAttention itself takes 16-bit numbers only; what stands in for it on a CPU takes any.
ATTENTION_DTYPES = [torch.float16, torch.bfloat16, *([] if DEVICE.type == "cuda" else [torch.float32])]
TRITON = [name for name in PIECES if name != "attention"]
# What a program may have of a multiprocessor's memory, by capability.
SHARED_BYTES = {80: 163 << 10, 86: 99 << 10, 89: 99 << 10, 90: 227 << 10, 100: 227 << 10, 120: 99 << 10}
# On CPUs PyTorch's attention stands in for FlashAttention.
FUSED_HERE = replace(FUSED, attention=PLAIN.attention)
# The official model's heads; more heads than it has, their number and sizes no powers of two.
SHAPES = [FULL, replace(FULL, hidden=200, heads=6, kv_heads=3, head_dim=48, intermediate=136)]

pytestmark = pytest.mark.usefixtures("interpreter")
needs_triton = pytest.mark.skipif(not AVAILABLE, reason="needs Triton")


# The programs of these take several tokens; of the others each token has its own, whatever comes after it.
IN_BLOCKS = ("geglu", "segment_mean")


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=["official", "odd"])
@pytest.mark.parametrize(
    ("name", "tokens"), [(name, n) for name in TRITON for n in (1, 13, 64) if n < 64 or name in IN_BLOCKS]
)
def test_a_fused_kernel_computes_what_pytorch_does(name: str, shape: Any, tokens: int, dtype: torch.dtype) -> None:
    assert Samples(shape, dtype, DEVICE, tokens).error(name, getattr(FUSED, name), getattr(PLAIN, name)) <= 1


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
    normed = FUSED.add_norm(stream, y.half(), post, rescaled)
    assert stream.isfinite().all() and (normed.float() - expected).abs().max() < 4e-3 * expected.abs().max()
    tiny = torch.full((1, 768), 1e-4, device=DEVICE)  # where epsilon decides
    expected = PLAIN.add_norm(tiny.clone(), torch.zeros_like(tiny), post, pre)
    normed = FUSED.add_norm(tiny * 2.0**-shift, torch.zeros_like(tiny), post, rescaled)
    assert torch.allclose(normed.float(), expected, rtol=1e-3)


@needs_triton
@pytest.mark.parametrize("kernels", [PLAIN, FUSED], ids=["plain", "fused"])
def test_no_mean_meets_another_text(kernels: Kernels) -> None:
    x = torch.randn(70, 96, device=DEVICE)
    x[3:40] = torch.nan
    starts, ends = torch.tensor([[0, 3, 40, 0, 0], [3, 40, 70, 0, 0]], dtype=torch.int32, device=DEVICE)
    means = kernels.segment_mean(x, SimpleNamespace(starts=starts, ends=ends, spans=()))
    assert torch.allclose(means[[0, 2]], torch.stack([x[:3].mean(0), x[40:].mean(0)]), atol=1e-6)
    assert means[1].isnan().all() and (means[3:] == 0).all()


@cache
def load(numbers: NumberFormat = FLOAT32) -> Network:
    """Return the small checkpoint's network."""
    return load_network(SMALL, read_architecture(SMALL), numbers, DEVICE)


@needs_triton
@torch.inference_mode()
@pytest.mark.parametrize(("numbers", "limit"), [(FLOAT32, 1e-6), (FLOAT16, 1e-5)], ids=["float32", "float16"])
def test_the_whole_network(numbers: NumberFormat, limit: float) -> None:
    network, segments = load(numbers), segments_of([9, 1, 4], DEVICE)
    ids = torch.tensor(random_ids(14), dtype=torch.int32, device=DEVICE)
    vectors = {}
    for network.kernels in (PLAIN, FUSED_HERE):
        vectors[network.kernels] = network(ids, segments).cpu().numpy()
    cosine, norm = errors(vectors[FUSED_HERE], vectors[PLAIN])
    print(f"1 - cosine {cosine:.1e}, norm {norm:.1e}")
    assert cosine <= limit and norm <= 1e-2


@pytest.mark.parametrize(
    "capabilities", [(80, 90), pytest.param((86, 89), marks=pytest.mark.gpu_compile),
                     pytest.param((100, 120), marks=pytest.mark.gpu_compile)],
    ids=lambda capabilities: "-".join(map(str, capabilities)),
)  # fmt: skip
def test_every_kernel_compiles(capabilities: tuple[int, int], tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tests.support.compile_kernels", *map(str, capabilities)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert run.returncode == 0, run.stderr
    compiled = json.loads(run.stdout)
    kinds = {(kernel["kernel"], kernel["target"].split()[1].strip(",")) for kernel in compiled}
    expected = {f"_{name}" for name in TRITON} | {"_gate_normed", "_list_tiles", "_prepare_keys", "_attend", "_matmul"}
    described = {("_gate_up", f"sm_{each}a") for each in capabilities if each in (90, 100)}
    assert kinds - described == {(name, target) for name in expected for _, target in kinds} and described <= kinds
    attend = [kernel for kernel in compiled if kernel["kernel"] == "_attend"]
    assert len(attend) == 10  # for short texts and longer ones, scaled and not, and for wide heads
    in_tiles, dependent = {"_attend", "_matmul", "_gate_up"}, {"_attend", "_matmul", "_add_norm"}
    for kernel in compiled:
        [capability] = (each for each in capabilities if f"sm_{each}" in kernel["target"])
        assert kernel["cubin_bytes"] > 0
        assert kernel["waits"] == (capability >= 90 and kernel["kernel"] in dependent), kernel
        assert kernel["registers"] <= 255 and kernel["stack_bytes"] == kernel["local_bytes"] == 0, kernel  # no spills
        # 16 bytes at once; without them memory moves at a fraction of its speed. What a kernel stores in float16 it has
        # loaded in the same layout, while its loads of float32 gains are wide in any; the mean stores single numbers.
        if kernel["kernel"] == "_segment_mean":
            assert kernel["load_bytes"].count(16) >= 2, kernel
        elif kernel["kernel"] in ("_matmul", "_gate_up"):  # they read as fast as they multiply, but for rows' scales
            assert set(kernel["load_bytes"]) <= {4}, kernel
        elif kernel["kernel"] == "_add_norm" and 4 in kernel["store_bytes"]:  # a token's scale
            assert sorted(set(kernel["store_bytes"])) == [4, 16], kernel
        elif kernel["kernel"] != "_list_tiles":  # whose lists are short
            assert set(kernel["store_bytes"]) == {16}, kernel
        assert kernel["shared_bytes"] < (SHARED_BYTES[capability] if kernel["kernel"] in in_tiles else 16_384), kernel


def spoiled(kernel: Callable[..., Any], spoil: Callable[[Any], Any]) -> Callable[..., Any]:
    """A kernel whose result is spoiled afterwards."""
    return lambda *args: spoil(kernel(*args))


def raising(*args: Any) -> Any:
    raise RuntimeError("ptxas says no")


def without_window(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float) -> Tensor:
    return PLAIN.attention(q, k, v, segments, None, scale)


FAULTS: list[tuple[str, Callable[..., Any], str]] = [
    ("add_norm", spoiled(PLAIN.add_norm, lambda x: x * 1.01), "is off by"),
    ("add_norm", lambda x, *others: PLAIN.add_norm(x.clone(), *others), "is off by"),
    ("embed_norm", spoiled(PLAIN.embed_norm, lambda pair: (pair[0], pair[0])), "is off by"),
    ("segment_mean", spoiled(PLAIN.segment_mean, lambda x: x * torch.nan), "is off by nan"),
    ("segment_mean", spoiled(PLAIN.segment_mean, lambda x: x[:3]), "raised RuntimeError: The size of tensor"),
    ("geglu", spoiled(PLAIN.geglu, lambda x: x.double()), "raised RuntimeError"),
    ("geglu", spoiled(PLAIN.geglu, lambda x: x.roll(1, 0)), "is off by"),
    ("norm_rotate", raising, "raised RuntimeError: ptxas says no"),
    ("norm_rotate", lambda qk, *others: PLAIN.norm_rotate(qk, *others).flip(1), "is off by"),
    ("attention", without_window, "is off by"),
    ("attention", spoiled(PLAIN.attention, lambda x: x.flip(1)), "is off by"),
]


@pytest.mark.parametrize(("name", "kernel", "words"), FAULTS)
def test_a_kernel_that_is_wrong_is_replaced(
    name: str, kernel: Callable[..., Any], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    network, changed = load(), dict[str, Any]({name: kernel})
    with caplog.at_level(logging.WARNING):
        install(network, replace(PLAIN, **changed), lengths=(1, 2, 37, 301))
    assert network.kernels == PLAIN
    assert [record.getMessage().startswith(f"kernel {name} ") for record in caplog.records] == [True]
    assert words in caplog.text and "PyTorch's own is used in its place" in caplog.text


def test_only_the_kernels_that_are_wrong_are_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """In float16, as on a GPU: a kernel that rounds elsewhere stays, between two that are wrong."""

    def geglu(gate: Tensor, up: Tensor) -> Tensor:
        return PLAIN.geglu(gate.float(), up.float()).to(gate.dtype)

    network = load(FLOAT16)
    with caplog.at_level(logging.WARNING):
        install(network, replace(PLAIN, attention=without_window, geglu=geglu, segment_mean=raising))
    assert network.kernels == replace(PLAIN, geglu=geglu)
    assert [record.getMessage().split()[1] for record in caplog.records] == ["attention", "segment_mean"]


@pytest.mark.fuzz
@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("dtype", ATTENTION_DTYPES)
def test_attention_by_itself_is_within_rounding_or_shows_its_fault(dtype: torch.dtype) -> None:
    """In bfloat16, too, where an attention without its window changes a vector by no more than rounding does."""
    network = load(NumberFormat(dtype, dtype))
    error = attention_error(varlen_attention, network, LENGTHS)
    print(f"{dtype}: {error:.2f} times what rounding explains")
    assert error <= 2

    def windowed(window_of: Callable[[int | None], int | None]) -> Callable[..., Tensor]:
        return lambda q, k, v, s, window, scale: PLAIN.attention(q, k, v, s, window_of(window), scale)

    def leaking(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float) -> Tensor:
        first, second, *others = segments.lengths  # the first two texts are read as one
        joined = replace(segments, lengths=(first + second, *others))
        return PLAIN.attention(q, k, v, joined, window, scale)

    def unwritten(*args: Any) -> Tensor:
        out = PLAIN.attention(*args)
        out[-1] = torch.nan
        return out

    faults = {
        **{name: windowed(window_of) for name, window_of in WRONG_WINDOWS.items()},
        "leaking": leaking,
        "unwritten": unwritten,
    }
    for name, attention in faults.items():
        assert not attention_error(attention, network, LENGTHS) <= 8, name
        assert install(network, replace(PLAIN, attention=attention), lengths=(1, 2, 600)), name
        assert network.kernels == PLAIN, name
    assert install(network, replace(PLAIN, attention=varlen_attention))
    assert network.kernels == replace(PLAIN, attention=varlen_attention)


def test_nothing_is_trusted_where_every_vector_overflows(caplog: pytest.LogCaptureFixture) -> None:
    network = load_network(SMALL, read_architecture(SMALL), FLOAT32, DEVICE)
    network.norm.gain.fill_(torch.inf)
    with caplog.at_level(logging.WARNING):
        assert not install(network, replace(PLAIN, geglu=spoiled(PLAIN.geglu, lambda x: x)), lengths=(1, 2))
    assert network.kernels == PLAIN
    assert "no kernel could be compared" in caplog.text


@needs_triton
def test_fused_kernels_that_agree_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    network = load()
    with caplog.at_level(logging.WARNING):
        install(network, FUSED_HERE, lengths=(1, 2, 7))
    assert network.kernels == FUSED_HERE and not caplog.records


@needs_triton
def test_a_new_gpu_gets_every_fused_kernel_and_an_old_one_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    for capability, expected in (((8, 0), FUSED), ((9, 0), FUSED), ((7, 5), PLAIN)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, version=capability: version)
        assert candidates(torch.float16, cuda) == candidates(torch.bfloat16, cuda) == expected
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert candidates(dtype, torch.device("cpu")) == PLAIN


@needs_triton
def test_flash_attention_needs_16_bit_and_no_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert candidates(torch.float32, cuda) == replace(FUSED, attention=PLAIN.attention)
    monkeypatch.setattr(triton_import, "AVAILABLE", False)
    assert candidates(torch.float16, cuda) == replace(PLAIN, attention=FUSED.attention)
    assert candidates(torch.float32, cuda) == PLAIN


def test_kernels_are_described_in_words() -> None:
    assert describe(FUSED) == "6 of 6 kernels fused"
    assert describe(replace(FUSED, geglu=PLAIN.geglu)) == "5 of 6 kernels fused"


def test_positions_beyond_the_limit_have_angles_too() -> None:
    positions = torch.tensor([5000, 2047, 3])
    cos, _ = Rotation(positions, 5001, 1e4, 8).of_tokens
    angles = positions[:, None].float() * (1.0 / 1e4 ** (torch.arange(0, 8, 2) / 8))
    assert torch.equal(cos[:, 0], angles.cos())


def test_blocks() -> None:
    assert [block(size) for size in (1, 2, 3, 768, 1024, 1025)] == [1, 2, 4, 1024, 1024, 2048]


def test_a_network_starts_with_pytorch_s_own_kernels() -> None:
    assert Network(replace(FULL, windows=(None,)), FLOAT32).kernels is PLAIN
