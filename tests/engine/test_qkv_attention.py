"""Attention straight from the projection, on the GPU or in Triton's interpreter, against PyTorch and its self-test."""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import chain, pairwise, product
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.graphs import capturable
from engine.kernels import FUSED, MERGED, PLAIN
from engine.kernels import qkv_attention as module
from engine.kernels.norms import RMSNorm
from engine.kernels.qkv_attention import (
    LARGER,
    OF_SHORT_TEXTS,
    SMALLER,
    TILINGS,
    Tiling,
    qkv_attention,
    qkv_attention_fused,
    supports,
    with_tiles,
)
from engine.kernels.rotary import Rotation
from engine.kernels.triton_import import AVAILABLE
from engine.model import FLOAT16, FLOAT32, Network, NumberFormat
from engine.native.choice import trial
from engine.packing import Layout, Segments
from engine.selection import ALLOWED_ROUNDING_ERRORS, candidates, describe, install, qkv_attention_error
from tests.support.kernel_samples import WRONG_WINDOWS
from tests.support.triton_interpreter import mend
from tests.support.vectors import errors, random_ids, segments_of
from weights import SMALL

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS = 3
EACH_TILING = {"short": OF_SHORT_TEXTS, "smaller": SMALLER, "middle": TILINGS[8, 0], "larger": LARGER}
if DEVICE.type == "cuda":  # which may not have the memory for others
    EACH_TILING = {"short": OF_SHORT_TEXTS, "longer": module.tiling(2048, DEVICE)}
MIXED = [1, 2, 63, 64, 65]
# On a GPU Triton multiplies float32 with fewer digits.
DTYPES = [torch.float16, torch.bfloat16, *([] if DEVICE.type == "cuda" else [torch.float32])]

pytestmark = [pytest.mark.usefixtures("interpreter"), pytest.mark.skipif(not AVAILABLE, reason="needs Triton")]


@pytest.fixture(autouse=True)
def mended_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        mend(monkeypatch)


class Batch(NamedTuple):
    """Arguments of `qkv_attention` but for window and scale."""

    qkv: Tensor
    norm: RMSNorm
    rotation: Rotation
    segments: Segments


def batch(lengths: list[int], dtype: torch.dtype, head_dim: int, padding: int = 0) -> Batch:
    """Random projections of these texts, of padding tokens, which become texts too, and of three texts of none."""
    generator = torch.Generator().manual_seed(0)
    longest = max(lengths)
    texts = len(lengths) + -(-padding // longest) + 3
    layout = Layout(sum(lengths) + padding, texts, texts, longest)
    _, segments = layout.segments(layout.pack([[5] * length for length in lengths]).to(DEVICE))
    segments = replace(segments, lengths=[n for n in segments.cu_seqlens.diff().tolist() if n])
    qkv = (torch.randn(layout.tokens, HEADS + 2, head_dim, generator=generator) * 3).to(DEVICE, dtype)
    norm = RMSNorm(HEADS + 1, head_dim, eps=1e-6)
    norm.gain.data = (torch.rand(HEADS + 1, head_dim, generator=generator) + 0.5).to(DEVICE)
    return Batch(qkv, norm, Rotation(segments.positions, longest, 1e4, head_dim), segments)


def fused(b: Batch, window: int | None = None, *scales: Any) -> Tensor:
    tiled = with_tiles(replace(b.segments, lengths=()), HEADS)  # the host knows no lengths
    return qkv_attention_fused(b.qkv.clone(), b.norm, b.rotation, tiled, window, 1 / 16, *scales)


def compare(
    lengths: list[int], window: int | None, dtype: torch.dtype, head_dim: int, padding: int = 0, scaled: bool = False
) -> None:
    b, scales = batch(lengths, dtype, head_dim, padding), list[Any]()
    if scaled:  # rows of the stream are up to a hundred times as large as others, and eps matters in the smallest
        b.norm.eps = 0.1
        scales = [torch.rand(len(b.qkv), generator=torch.Generator().manual_seed(1)).mul(7).exp2().to(DEVICE) / 8, 4.0]
        b.qkv.div_((scales[0] * scales[1])[:, None, None])
    mixed = fused(b, window, *scales)
    plain = qkv_attention(b.qkv.clone(), b.norm, b.rotation, b.segments, window, 1 / 16, *scales)
    exact = qkv_attention(b.qkv.float(), b.norm, b.rotation, b.segments, window, 1 / 16, *scales)
    assert mixed.shape == plain.shape and mixed.dtype == dtype and mixed.isfinite().all()
    mixed, plain = mixed.float(), plain.float()
    cosine = 1 - torch.cosine_similarity(mixed.double().flatten(1), exact.double().flatten(1)).min().item()
    eps = torch.finfo(dtype).eps
    to_plain = ((mixed - plain).abs() / (1 + plain.abs())).max().item()
    print(f"{dtype}: 1 - cosine to float32 {cosine:.1e}, largest difference from PyTorch in this format {to_plain:.1e}")
    # Scores of some tens, added up in another order, change a weight by some 1e-6 even in float32.
    assert to_plain <= 2 * eps + 5e-6 and cosine <= eps**2 + 1e-11


@pytest.fixture(params=EACH_TILING.values(), ids=list(EACH_TILING))
def tiling(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Tiling:
    """Each way to cut texts in turn, for texts of any length."""
    chosen: Tiling = request.param
    monkeypatch.setattr(module, "tiling", lambda *_: chosen)
    return chosen


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("window", [None, 20], ids=["full", "window"])
def test_texts_of_all_kinds(tiling: Tiling, window: int | None, scaled: bool) -> None:
    compare(MIXED, window, torch.float16, head_dim=32, padding=70, scaled=scaled)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_other_formats(dtype: torch.dtype) -> None:
    compare([1, 40], 20, dtype, head_dim=64)


@pytest.mark.parametrize(("lengths", "window"), [([257], None), ([257], 256), ([300, 1], 256), ([600], 256)], ids=str)
def test_longer_texts(lengths: list[int], window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "tiling", lambda *_: list(EACH_TILING.values())[-1])
    compare(lengths, window, torch.float16, head_dim=32)


@pytest.mark.parametrize("window", [None, 256], ids=["full", "window"])
@pytest.mark.parametrize(
    ("lengths", "scaled"),
    [
        pytest.param([257, 300], True, marks=pytest.mark.fuzz),
        *(
            pytest.param(lengths, scaled, marks=pytest.mark.gpu_compile)
            for lengths, scaled in (([257, 300], False), *product(([600, 1, 258], MIXED), (False, True)))
        ),
    ],
    ids=str,
)
def test_the_official_shape(tiling: Tiling, lengths: list[int], scaled: bool, window: int | None) -> None:
    compare(lengths, window, torch.float16, head_dim=256, padding=70, scaled=scaled)


@pytest.mark.gpu_compile
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("window", [256, 16, 0])
def test_the_official_shape_in_other_formats(tiling: Tiling, dtype: torch.dtype, window: int) -> None:
    compare([1, 63, 130, 300], window, dtype, head_dim=256)


@pytest.mark.parametrize("lengths", [[1], [64], [300, 1, 65, 42, 43, 2]], ids=str)
def test_the_list_has_every_row_once(tiling: Tiling, lengths: list[int]) -> None:
    segments = batch(lengths, torch.float16, 32, padding=50).segments
    tiles = with_tiles(segments, HEADS).tiles
    assert (
        tiles is not None
        and len(tiles) == len(segments.cu_seqlens) - 1 + HEADS * len(segments.positions) // tiling.rows
    )
    bounds = segments.cu_seqlens.tolist()
    expected = [
        (begin, end - begin, row)
        for begin, end in pairwise(bounds)
        for row in range(0, HEADS * (end - begin), tiling.rows)
    ]
    at_work = [(begin, length, row) for begin, length, row, _ in tiles.tolist() if row < HEADS * length]
    assert at_work == expected


def test_neither_neighbours_nor_nan_change_a_digit() -> None:
    """Not the last one either, as a text's tiles begin where it does."""
    lengths = [30, 100, 7]
    b = batch(lengths, torch.float16, 32)
    expected = fused(b)
    b.qkv[30:130] = torch.nan
    poisoned = fused(b)
    assert torch.equal(poisoned[:30], expected[:30]) and torch.equal(poisoned[130:], expected[130:])
    assert poisoned[30:130].isnan().all()
    alone = batch([100], torch.float16, 32)
    alone.qkv[:] = batch(lengths, torch.float16, 32).qkv[30:130]
    assert torch.equal(fused(alone._replace(norm=b.norm)), expected[30:130])


def test_nothing_is_left_unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    b = batch([65, 3], torch.float16, 32, padding=10)
    expected, empty = fused(b), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(torch.nan))
    assert torch.equal(fused(b), expected)


def test_which_shapes_there_are() -> None:
    assert supports(3, 1, 256) and supports(3, 1, 64)
    assert not supports(6, 3, 256) and not supports(3, 1, 48)


def test_a_gpu_is_given_the_tiles_it_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, chosen = torch.device("cuda"), []
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, version=capability: version)
        assert module.tiling(64, cuda) == OF_SHORT_TEXTS
        chosen.append(module.tiling(65, cuda))
    assert chosen == [TILINGS[8, 0], SMALLER, SMALLER, LARGER, TILINGS[10, 0], SMALLER]


def few_layers(numbers: NumberFormat = FLOAT16) -> Network:
    """A sliding and a full layer of the small checkpoint's sizes, with random weights; on a GPU all of its own."""
    a = read_architecture(SMALL)
    return load_network(SMALL, a, numbers, DEVICE) if DEVICE.type == "cuda" else trial(a, numbers)


@torch.inference_mode()
def test_the_whole_network_in_a_graph_s_buffer_too() -> None:
    """The same vectors, alone and in the static buffer of a larger layout; PyTorch has the other kernels."""
    network, texts = few_layers(FLOAT32), [random_ids(n, vocabulary=250) for n in (9, 1, 20)]
    ids, segments = torch.tensor(list(chain(*texts)), dtype=torch.int32, device=DEVICE), segments_of([9, 1, 20], DEVICE)
    expected = network(ids, segments).cpu().numpy()
    network.kernels = replace(PLAIN, qkv_attention=qkv_attention_fused)
    actual = network(ids, segments).cpu().numpy()
    layout = Layout(45, 6, 6, 24)
    replayed = network(*layout.segments(layout.pack(texts).to(DEVICE)))[:3].cpu().numpy()
    limit = 1e-5 if DEVICE.type == "cuda" else 1e-10  # on a GPU Triton multiplies float32 with fewer digits
    for vectors in (actual, replayed):
        cosine, norm = errors(vectors, expected)
        print(f"1 - cosine {cosine:.1e}, norm {norm:.1e}")
        assert cosine <= limit and norm <= 1e-2


def test_graphs_need_it_or_flash_attention() -> None:
    assert capturable(FUSED) and capturable(MERGED) and capturable(replace(MERGED, attention=PLAIN.attention))
    assert not capturable(replace(FUSED, attention=PLAIN.attention))
    assert not capturable(replace(FUSED, qkv_attention=qkv_attention))
    assert not capturable(replace(MERGED, segment_mean=PLAIN.segment_mean))


def test_it_is_off_until_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (9, 0))
    assert candidates(torch.float16, torch.device("cuda")).qkv_attention is None
    assert describe(FUSED) == "6 of 6 kernels fused"
    assert describe(replace(FUSED, qkv_attention=qkv_attention_fused)) == "6 of 6 kernels fused, tiled attention"


def windowed(window_of: Callable[[int | None], int | None]) -> Callable[..., Tensor]:
    return lambda qkv, norm, rotation, s, window, scale: qkv_attention(qkv, norm, rotation, s, window_of(window), scale)


def leaking(qkv: Tensor, norm: Any, rotation: Any, segments: Segments, *others: Any) -> Tensor:
    first, second, *rest = segments.lengths  # the first two texts are read as one
    return qkv_attention(qkv, norm, rotation, replace(segments, lengths=(first + second, *rest)), *others)


def unwritten(*arguments: Any) -> Tensor:
    out = qkv_attention(*arguments)
    out[-1] = torch.nan
    return out


def with_gains(change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def attend(qkv: Tensor, norm: Any, *others: Any) -> Tensor:
        changed = RMSNorm(*norm.gain.shape, eps=norm.eps)
        changed.gain.data = change(norm.gain.data.clone())
        return qkv_attention(qkv, changed, *others)

    return attend


def unrotated(qkv: Tensor, norm: Any, rotation: Rotation, *others: Any) -> Tensor:
    return qkv_attention(qkv, norm, Rotation(rotation.positions * 0, 1, 1e4, qkv.shape[2]), *others)


def raising(*arguments: Any) -> Tensor:
    raise RuntimeError("ptxas says no")


FAULTS = {
    **{name: windowed(window_of) for name, window_of in WRONG_WINDOWS.items()},
    "leaking": leaking,
    "unwritten": unwritten,
    "gains of one head for all": with_gains(lambda gains: gains[:1].expand_as(gains).clone()),
    "unrotated": unrotated,
}


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_fault_shows_in_the_kernel_by_itself(dtype: torch.dtype) -> None:
    network = few_layers(NumberFormat(dtype, dtype))
    found = {name: qkv_attention_error(fault, network, (1, 2, 600)) for name, fault in FAULTS.items()}
    right = qkv_attention_error(qkv_attention, network, (1, 2, 600))
    print(f"{dtype}: {right:.2f} times what rounding explains; with faults", found)
    assert right <= 2
    assert not [name for name, error in found.items() if error <= 2 * ALLOWED_ROUNDING_ERRORS]


WRONG = [(FAULTS["one too wide"], "is off by"), (raising, "raised RuntimeError: ptxas says no")]


@pytest.mark.parametrize(("kernel", "words"), WRONG, ids=["wrong", "raising"])
def test_what_is_wrong_is_left_out_and_costs_nothing_else(
    kernel: Callable[..., Tensor], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    network = few_layers()
    with caplog.at_level(logging.INFO):
        assert install(network, replace(PLAIN, qkv_attention=kernel), lengths=(1, 2, 300))
    assert network.kernels == PLAIN
    [record] = caplog.records
    assert record.levelno == logging.INFO and record.getMessage().startswith(f"kernel qkv_attention {words}")
    assert record.getMessage().endswith("; norm_rotate and attention are used in its place")


def test_a_fault_with_short_texts_alone_is_found() -> None:
    def kernel(*arguments: Any) -> Tensor:
        return qkv_attention(*arguments) * (1 + (arguments[3].longest <= 64))

    network = few_layers()
    assert install(network, replace(PLAIN, qkv_attention=kernel), lengths=(1, 70)) and network.kernels == PLAIN


@pytest.mark.parametrize(
    "dtype", [torch.float16, *(pytest.param(dtype, marks=pytest.mark.fuzz) for dtype in DTYPES[1:])], ids=str
)
def test_what_is_right_is_kept(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    network = few_layers(NumberFormat(dtype, dtype))
    kernels = replace(PLAIN, qkv_attention=qkv_attention_fused)
    with caplog.at_level(logging.INFO):
        assert install(network, kernels, lengths=(1, 70)) and network.kernels == kernels
    with torch.inference_mode():
        error = qkv_attention_error(qkv_attention_fused, network, (1, 70))
    print(f"{dtype}: {error:.2f} times what rounding explains")
    assert not caplog.records
