"""Step of `lab.benchmarks.gpu`: the merged kernels by their tiles, each beside what it would replace."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any, NamedTuple, cast
from unittest.mock import patch

import torch
from torch import Tensor

from engine.configs import read_architecture
from engine.graphs import buckets, cuda_capture
from engine.kernels import FUSED, MERGED
from engine.kernels.matmuls import FEW, LARGER, SMALLER, Tile, matmul
from engine.kernels.norms import RMSNorm
from engine.kernels.qkv_attention import Tiling, qkv_attention, with_tiles
from engine.kernels.rotary import Rotation
from engine.model import Architecture, Network
from engine.packing import Segments, layout_of
from engine.selection import LENGTHS, qkv_attention_error
from lab.benchmarks.gpu_ceilings import DEVICE, DTYPE, FEW_ROWS, device_s, matmul_s
from lab.benchmarks.gpu_figures import BY_FLASH, BY_TORCH, NOW, OF_ATTENTION, OF_FEW_ROWS, WITH_GEGLU
from lab.benchmarks.gpu_steps import ON_GPU, Step, main, mixed_sample, rehearsal_fault

Settings = dict[str, Any]
Figures = dict[str, float]

# All compile for capability 9.0 without spilling registers, in at most 224 KiB of shared memory.
MANY_ROWS = (
    LARGER._replace(described=True), Tile(128, 256, 64, 8, 4, described=True),
    Tile(256, 128, 64, 8, 3, described=True), Tile(128, 128, 64, 4, 4, described=True), LARGER, SMALLER,
)  # fmt: skip
FEW_TILES = (FEW, Tile(16, 16, 128, 2, 6), Tile(16, 64, 128, 4, 6), Tile(32, 32, 128, 4, 6))
TILINGS = (
    Tiling(128, 64), Tiling(64, 64), Tiling(64, 64, 3), Tiling(128, 32, 3), Tiling(64, 32, 3),
    Tiling(64, 32, prepared=False),
)  # fmt: skip
TILE_FOR, TILING_FOR = "engine.kernels.matmuls.tile_for", "engine.kernels.qkv_attention.tiling"
# Every GPU that can launch a kernel before the last one has ended.
DEPENDENT, EVERYWHERE = "engine.kernels.launching.SHOWN_ON", frozenset(product(range(9, 13), range(10)))


def by_torch(x: Tensor, weight: Tensor, gated: bool = False) -> Tensor:
    """Return what `matmul` does, by torch's matmul and the kernel of GeGLU that is served."""
    if not (gated and ON_GPU):
        return matmul(x, weight, gated)
    gate, up = matmul(x, weight).chunk(2, dim=-1)
    return FUSED.geglu(gate, up)


def by_flash(
    qkv: Tensor, norm: RMSNorm, rotation: Rotation, segments: Segments, window: int | None, scale: float
) -> Tensor:
    """Return what `qkv_attention` does, for one key/value head, by the kernels that are served."""
    if not ON_GPU:
        return qkv_attention(qkv, norm, rotation, segments, window, scale)
    qk = FUSED.norm_rotate(qkv[:, :-1], norm, rotation)
    return FUSED.attention(qk[:, :-1], qk[:, -1:], qkv[:, -1:], segments, window, scale)


@torch.inference_mode()
def product_error(multiply: Callable[..., Tensor], rows: int, inner: int, columns: int, gated: bool) -> float:
    """Return the relative error of a product, against float32."""
    x, weight = (torch.randn(n, inner, device=DEVICE).mul_(inner**-0.25).to(DTYPE) for n in (rows, columns))
    exact = matmul(x.float(), weight.float(), gated=gated)
    return ((multiply(x, weight, gated) - exact).norm() / exact.norm()).item()


def shapes_of_few(a: Architecture) -> dict[str, tuple[int, int, bool]]:
    """Return a layer's matmuls but the smallest: columns that are summed, rows of the weight, and whether it gates."""
    qkv = (a.hidden, (a.heads + 2 * a.kv_heads) * a.head_dim, False)
    return {"qkv": qkv, "gate and up": (a.hidden, 2 * a.intermediate, True), "down": (a.intermediate, a.hidden, False)}


def time_many(multiply: Callable[..., Tensor], a: Architecture, step: Step) -> Figures:
    """Return the microseconds of gate_up with GeGLU."""
    rows, inner, columns = step.workload.matmul_rows, a.hidden, 2 * a.intermediate
    seconds = matmul_s(rows, inner, columns, partial(multiply, gated=True))
    return {"us": seconds * 1e6, "TFLOP/s": 2 * rows * inner * columns / seconds / 1e12}


def time_few(multiply: Callable[..., Tensor], a: Architecture, step: Step) -> Figures:
    """Return the microseconds of a layer's matmuls of few rows, and their sum."""
    us = {
        f"{name}, us": matmul_s(FEW_ROWS, inner, columns, partial(multiply, gated=gated)) * 1e6
        for name, (inner, columns, gated) in shapes_of_few(a).items()
    }
    return {"us": sum(us.values()), **us}


@torch.inference_mode()
def time_attention(attention: Callable[..., Tensor], a: Architecture, step: Step) -> Figures:
    """Return the microseconds of a layer, the mean over all layers of a pass of mixed texts, as a graph runs it."""
    tokens = step.workload.matmul_rows
    texts = next(mixed_sample(step.checkpoint, step.workload.some_texts).batches(tokens))
    lengths = [len(ids) for ids in texts]
    exact = layout_of(lengths, None)
    layout = next((each for each in buckets(2 * tokens) if each.holds(exact)), exact) if ON_GPU else exact
    _, segments = layout.segments(layout.pack(texts).to(DEVICE), lengths)
    qkv = torch.randn(layout.tokens, a.heads + 2, a.head_dim, dtype=DTYPE, device=DEVICE)
    norm = RMSNorm(a.heads + 1, a.head_dim, eps=a.eps, dtype=DTYPE).to(DEVICE)
    norm.gain.fill_(1)
    rotations = {window: a.rotation(segments, window) for window in set(a.windows)}
    if attention is MERGED.qkv_attention:
        segments = with_tiles(segments, a.heads)

    def layers() -> Tensor:
        for window in a.windows:
            out = attention(qkv, norm, rotations[window], segments, window, a.attention_scale)
        return out

    layers()  # compiles, which a capture forbids
    return {"us": device_s(cuda_capture()(layers) if ON_GPU else layers) / len(a.windows) * 1e6}


def error_of_many(multiply: Callable[..., Tensor], a: Architecture) -> Figures:
    """Return the error of gate_up with GeGLU, of rows that fill no tile."""
    return {"error": product_error(multiply, 1_000, a.hidden, 2 * a.intermediate, gated=True)}


def error_of_few(multiply: Callable[..., Tensor], a: Architecture) -> Figures:
    """Return the largest error of a layer's matmuls of few rows."""
    return {"error": max(product_error(multiply, FEW_ROWS - 1, *shape) for shape in shapes_of_few(a).values())}


@torch.inference_mode()
def error_of_attention(attention: Callable[..., Tensor], a: Architecture) -> Figures:
    """Return how far attention is off that in float32, in units of what rounding explains; 8 are allowed."""
    embedding = SimpleNamespace(table=torch.empty(0, device=DEVICE))
    network = SimpleNamespace(architecture=a, numbers=SimpleNamespace(dtype=DTYPE), embedding=embedding)
    return {"rounding errors": qkv_attention_error(attention, cast(Network, network), LENGTHS)}


class Group(NamedTuple):
    """Ways to compute the same: what is served, what may replace it, and the constants that name each of its tiles."""

    served: str
    base: Callable[..., Tensor]
    merged: Callable[..., Tensor]
    time: Callable[[Callable[..., Tensor], Architecture, Step], Figures]
    error: Callable[[Callable[..., Tensor], Architecture], Figures]
    tiles: dict[str, Settings]


def groups() -> dict[str, Group]:
    """Return all groups. On a CPU, where Triton has none, PyTorch's own functions take the kernels' place."""
    multiply, attend = (MERGED.gate_up, MERGED.qkv_attention) if ON_GPU else (matmul, qkv_attention)
    assert multiply and attend
    few = {
        in_words(tile) + ", dependent" * dependently: settings_of(tile, dependently)
        for tile, dependently in product(FEW_TILES, (False, True))
    }
    many, tilings = ({in_words(tile): settings_of(tile) for tile in tiles} for tiles in (MANY_ROWS, TILINGS))
    return {
        WITH_GEGLU: Group(BY_TORCH, by_torch, multiply, time_many, error_of_many, many),
        OF_FEW_ROWS: Group(BY_TORCH, by_torch, multiply, time_few, error_of_few, few),
        OF_ATTENTION: Group(BY_FLASH, by_flash, attend, time_attention, error_of_attention, tilings),
    }


def settings_of(tile: Tile | Tiling, dependently: bool = False) -> Settings:
    """Return the constants with which all matmuls, or all attention, have this tile."""
    dependent = {DEPENDENT: EVERYWHERE} if dependently else {}
    return {TILE_FOR if isinstance(tile, Tile) else TILING_FOR: lambda *_: tile, **dependent}


def in_words(tile: Tile | Tiling) -> str:
    """Return a tile as it is written in the code, so that it can be copied."""
    shown = {name: value for name, value in tile._asdict().items() if value != tile._field_defaults.get(name)}
    return f"{type(tile).__name__}({', '.join(f'{name}={value}' for name, value in shown.items())})"


@contextmanager
def patched(settings: Settings) -> Iterator[Settings]:
    """Patch the constants among the settings, and yield the options. Raises AttributeError for an unknown constant."""
    with ExitStack() as patches:
        for name in (constants := [name for name in settings if "." in name]):
            patches.enter_context(patch(name, settings[name]))
        yield {name: settings[name] for name in settings.keys() - constants}


def measure_tiles(step: Step) -> None:
    """Time every tile but those that failed in a process of their own."""
    a = read_architecture(step.checkpoint)
    for title, group in groups().items():
        step.part((title, group.served), partial(group.time, group.base, a, step))
        step.part((title, group.served, NOW), partial(next, iter(group.tiles)))
        for name, settings in group.tiles.items():
            if not rehearsal_fault(step, name):
                with patched(settings):
                    step.part((title, name), partial(group.time, group.merged, a, step))


MEASURES = {"tiles": measure_tiles}

if __name__ == "__main__":
    main(MEASURES)
