"""Matmuls as torch has none: gate_up's with GeGLU at its end, and of few rows, by many small programs.

A program multiplies a tile of rows by some rows of the weight. Rows of gate and up take turns there, so the two columns
that make an output are neighbours. Tensor descriptors (TMA, from capability 9.0 on) move whole tiles, and the program
that a processor runs then takes one tile after the other.
"""

from __future__ import annotations

from functools import cache
from math import gcd
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kernels.gating import geglu, gelu
from engine.kernels.launching import SHORT_PASS, dependent, wait_for_others
from engine.kernels.triton_import import block, jit, tl


class Tile(NamedTuple):
    """Rows of x and of the weight, how many of their numbers are read at a time, and how Triton compiles the loop."""

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    described: bool = False
    """Whether tensor descriptors move the tiles."""


# By compute capability. They take 176 KiB of shared memory (96 on 8.0), SMALLER 64, FEW 60, and spill no register.
LARGER = Tile(128, 256, 64, 8, 3)
TILES = {(8, 0): LARGER} | dict.fromkeys(((9, 0), (10, 0), (10, 3)), LARGER._replace(described=True))
SMALLER = Tile(128, 128, 64, 8, 3)
# For up to SHORT_PASS: many programs read the weights, each all of its own at once.
FEW = Tile(16, 32, 128, 4, 6)
# How much is fetched from memory at once, in 16-bit numbers.
LINE = 64
# Tiles of rows that neighbouring programs share: they find them, and their part of the weight, in the L2 cache.
GROUP = 8


def tile_for(tokens: int, device: torch.device) -> Tile:
    """Return how so many rows are multiplied on this device."""
    if tokens <= SHORT_PASS:
        return FEW
    return TILES.get(torch.cuda.get_device_capability(device), SMALLER) if device.type == "cuda" else SMALLER


def matmul(
    x: Tensor, weight: Tensor, gated: bool = False, inverse_rms: Tensor | None = None, power: float = 1.0
) -> Tensor:
    """Return x @ weight.T, [tokens, outputs], for x [tokens, inner] and weight [outputs, inner] in one format.

    With `inverse_rms`, float32 [tokens], the product is multiplied by it and `power` before it is rounded. If gated,
    the weight is that of gate and up, and `geglu` of the product is returned: half as many columns.
    """
    if inverse_rms is None:
        product = F.linear(x, weight)
    else:
        product = (F.linear(x.float(), weight.float()) * (inverse_rms * power)[:, None]).to(x.dtype)
    if not gated:
        return product
    gate, up = product.chunk(2, dim=-1)
    return geglu(gate, up)


def matmul_fused(
    x: Tensor, weight: Tensor, gated: bool = False, inverse_rms: Tensor | None = None, power: float = 1.0
) -> Tensor:
    """See `matmul`; for contiguous tensors whose `inner` 16 divides. GeGLU takes the product before it is rounded."""
    (tokens, inner), share, how = x.shape, 2 if gated else 1, tile_for(len(x), x.device)
    outputs, columns, step = len(weight) // share, how.columns // share, gcd(how.step, inner)
    out = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    scales, scaled = (x, False) if inverse_rms is None else (inverse_rms, True)
    tiles = -(-tokens // how.rows) * -(-outputs // columns)
    if gated and how.described:
        from triton.tools.tensor_descriptor import TensorDescriptor as Described  # which is not on a CPU

        _gate_up[(min(tiles, _processors(x.device)),)](
            Described.from_tensor(x, [how.rows, step]),
            Described(weight, [outputs, 2, inner], [inner, outputs * inner, 1], [columns, 2, step]),
            Described.from_tensor(out, [how.rows, columns]), scales, tokens, power, INNER=inner, OUTPUTS=outputs,
            ROWS=how.rows, COLUMNS=columns, STEP=step, GROUP=GROUP, SCALED=scaled, num_warps=how.warps,
            num_stages=how.stages,
        )  # fmt: skip
    else:
        _matmul[(tiles,)](
            x, weight, out, scales, tokens, power, INNER=inner, OUTPUTS=outputs, ROWS=how.rows, COLUMNS=columns,
            STEP=step, GROUP=GROUP, SCALED=scaled, SHARE=share, LINE=LINE, LINES=block(-(-inner // LINE)),
            num_warps=how.warps, num_stages=how.stages, **dependent(tokens, x.device),
        )  # fmt: skip
    return out


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@jit
def _place(tile, tokens, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Return a tile's first row and its first output."""
    across = tl.cdiv(OUTPUTS, COLUMNS)
    first = tile // (GROUP * across) * GROUP
    rows = tl.minimum(tl.cdiv(tokens, ROWS) - first, GROUP)
    rest = tile % (GROUP * across)
    return (first + rest % rows) * ROWS, rest // rows * COLUMNS


@jit
def _gated(total):  # type: ignore[no-untyped-def]
    gate, up = tl.split(tl.reshape(total, (total.shape[0], total.shape[1] // 2, 2)))
    return gelu(gate) * up


@jit
def _matmul(  # type: ignore[no-untyped-def]
    x, weight, out, scales, tokens, power,
    INNER: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr, SCALED: tl.constexpr, SHARE: tl.constexpr, LINE: tl.constexpr, LINES: tl.constexpr,  # noqa: N803
    DEPENDENT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    first_row, first = _place(tl.program_id(0), tokens, OUTPUTS, ROWS, COLUMNS, GROUP)
    row = (first_row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    weight_row = tl.arange(0, COLUMNS * SHARE)[:, None]
    weight_row = tl.minimum(first + weight_row // SHARE, OUTPUTS - 1) + weight_row % SHARE * OUTPUTS
    if DEPENDENT:  # the weights do not depend: have them fetched to the L2 cache meanwhile
        line = weight + weight_row * INNER + tl.minimum(tl.arange(0, LINES) * LINE, INNER - 1)[None, :]
        fetch: tl.constexpr = "prefetch.global.L2 [$1]; mov.b32 $0, 0;"
        tl.inline_asm_elementwise(fetch, "=r,l", [line], dtype=tl.int32, is_pure=False, pack=1)
    wait_for_others(DEPENDENT)
    inner = tl.arange(0, STEP)[None, :]
    x += tl.minimum(row, tokens - 1) * INNER + inner
    weight += weight_row * INNER + inner
    total = tl.zeros([ROWS, COLUMNS * SHARE], tl.float32)
    for start in range(0, INNER, STEP):
        total = tl.dot(tl.load(x + start), tl.load(weight + start).T, total)
    if SCALED:
        total *= tl.load(scales + tl.minimum(row, tokens - 1)) * power
    if SHARE == 2:
        total = _gated(total)
    column = first + tl.arange(0, COLUMNS)[None, :]
    inside = (row < tokens) & (column < OUTPUTS)
    tl.store(out + row * OUTPUTS + column, total.to(out.dtype.element_ty), mask=inside)


@jit
def _gate_up(  # type: ignore[no-untyped-def]
    x, weight, out, scales, tokens, power,
    INNER: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,  # noqa: N803
    GROUP: tl.constexpr, SCALED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    tiles = tl.cdiv(tokens, ROWS) * tl.cdiv(OUTPUTS, COLUMNS)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0), flatten=True):
        row, first = _place(tile, tokens, OUTPUTS, ROWS, COLUMNS, GROUP)
        total = tl.zeros([ROWS, 2 * COLUMNS], tl.float32)
        for start in range(0, INNER, STEP):
            both = tl.reshape(weight.load([first, 0, start]), (2 * COLUMNS, STEP))
            total = tl.dot(x.load([row, start]), both.T, total)
        if SCALED:
            total *= tl.load(scales + tl.minimum(row + tl.arange(0, ROWS)[:, None], tokens - 1)) * power
        out.store([row, first], _gated(total).to(out.dtype))
