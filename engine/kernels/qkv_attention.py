"""Attention straight from the fused projection: norm, rotation and attention of a packed batch in one step.

Or attention alone, for heads that are wider than FlashAttention takes.

The Triton version takes the query heads of a token as rows, as they share the one key/value head, and cuts the rows of
each text into tiles. A list on the device names the tiles; its length depends on sizes alone, so a graph can replay it.
The softmax is FlashAttention's (Dao, arXiv:2307.08691).
"""

from __future__ import annotations

from dataclasses import replace
from math import e, log2
from typing import NamedTuple

import torch
from torch import Tensor

from engine.attention import grouped_attention, varlen_attention
from engine.kernels.launching import dependent, wait_for_others
from engine.kernels.norms import RMSNorm
from engine.kernels.rotary import Rotation, norm_rotate, norm_rotate_rows
from engine.kernels.triton_import import jit, tl
from engine.packing import Segments


class Tiling(NamedTuple):
    """The rows of a tile, the keys read at a time, and how Triton compiles the loop over keys."""

    rows: int
    keys: int
    stages: int = 2
    prepared: bool = True
    """Whether a launch before norms and rotates the keys, rather than each tile those that it reads."""


# By compute capability. They take 192 and 160 KiB of shared memory (104 on 8.0), SMALLER 68. None spills a register,
# except LARGER with folded norms on 9.0 by Triton 3.6: 80 bytes.
WARPS = 8
LARGER = Tiling(128, 64)
TILINGS = {(9, 0): LARGER} | dict.fromkeys(((8, 0), (10, 0), (10, 3)), Tiling(64, 64))
SMALLER = Tiling(64, 32)
# Up to this length a text has three tiles at most, so they share few keys, and a launch less makes a query faster.
SHORT = 64
OF_SHORT_TEXTS = Tiling(64, 32, stages=1, prepared=False)
# FlashAttention's widest heads, and how wider ones are cut. No register is spilt; none has run on a GPU so far.
FLASH_WIDTH = 256
WIDE, WIDE_SMALLER = Tiling(64, 32, stages=1), Tiling(32, 16, stages=1)
# More than any distance. Divisible by 16 as the model's window is, so both use one compiled kernel.
NO_WINDOW = 1 << 20
TOKENS_AT_ONCE, SLOTS_AT_ONCE = 16, 32


def tiling(longest: int, device: torch.device) -> Tiling:
    """Return how texts of at most `longest` tokens are cut on this device."""
    if longest <= SHORT:
        return OF_SHORT_TEXTS
    return TILINGS.get(torch.cuda.get_device_capability(device), SMALLER) if device.type == "cuda" else SMALLER


def wide_tiling(device: torch.device) -> Tiling:
    """Return how texts are cut on this device for heads that are wider than FlashAttention takes."""
    newer = device.type == "cuda" and torch.cuda.get_device_capability(device) in TILINGS.keys() - {(8, 0)}
    return WIDE if newer else WIDE_SMALLER


def supports(heads: int, kv_heads: int, head_dim: int) -> bool:
    """Whether the Triton version computes attention of this shape."""
    return kv_heads == 1 and heads > 0 and head_dim in (32, 64, 128, 256)


def qkv_attention(
    qkv: Tensor, norm: RMSNorm, rotation: Rotation, segments: Segments, window: int | None, scale: float,
    inverse_rms: Tensor | None = None, power: float = 1.0,
) -> Tensor:  # fmt: skip
    """Return [tokens, heads, head_dim] for the projection `qkv` [tokens, heads + 2 kv_heads, head_dim].

    Queries and keys are normed and rotated, in float32, and rounded to their own format. `norm.gain` has a row for each
    of these heads; see `engine.attention` for the rest. `qkv` may be overwritten. With `inverse_rms`, float32 [tokens],
    the projection is `qkv` times it and `power`.
    """
    kv_heads, dtype = qkv.shape[1] - norm.gain.shape[0], qkv.dtype
    heads = norm.gain.shape[0] - kv_heads
    if inverse_rms is not None:
        qkv = qkv * (inverse_rms * power)[:, None, None]
    qk, v = norm_rotate(qkv[:, :-kv_heads], norm, rotation).to(dtype), qkv[:, -kv_heads:].to(dtype)
    return grouped_attention(qk[:, :heads], qk[:, heads:], v, segments, window, scale)


def with_tiles(segments: Segments, heads: int, how: Tiling | None = None) -> Segments:
    """Return the segments with the list of tiles that `qkv_attention_fused` needs, made once for all layers.

    It has a slot for each possible tile: text t's begin at t + heads * (its first token) // rows, which leaves enough
    for its own. In slots without work the first row is none of the text's.
    """
    rows = (how or tiling(segments.longest, segments.cu_seqlens.device)).rows
    texts, tokens = len(segments.cu_seqlens) - 1, len(segments.positions)
    tiles = segments.cu_seqlens.new_empty(texts + heads * tokens // rows, 4)
    _list_tiles[(texts,)](segments.cu_seqlens, tiles, HEADS=heads, ROWS=rows, SLOTS=SLOTS_AT_ONCE, num_warps=1)
    return replace(segments, tiles=tiles)


def qkv_attention_fused(
    qkv: Tensor, norm: RMSNorm, rotation: Rotation, segments: Segments, window: int | None, scale: float,
    inverse_rms: Tensor | None = None, power: float = 1.0,
) -> Tensor:  # fmt: skip
    """See `qkv_attention`; for one key/value head, and segments from `with_tiles`. Overwrites the keys.

    Norms take away what scales a row, but for their eps. The values' scale is that of the softmax's weights.
    """
    (tokens, both, head_dim), tiles, how = qkv.shape, segments.tiles, tiling(segments.longest, qkv.device)
    assert tiles is not None
    heads, half, eps = both - 2, head_dim // 2, norm.eps / power**2
    scales, scaled = (rotation.cos, False) if inverse_rms is None else (inverse_rms, True)
    out = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if how.prepared:
        _prepare_keys[(-(-tokens // TOKENS_AT_ONCE),)](
            qkv[:, heads], norm.gain[heads], rotation.cos, rotation.sin, rotation.positions, scales, tokens,
            eps, ROW=both * head_dim, HALF=half, TOKENS=TOKENS_AT_ONCE, SCALED=scaled, num_warps=4,
        )  # fmt: skip
    _attend[(len(tiles),)](
        qkv, tiles, norm.gain, rotation.cos, rotation.sin, scales, out, NO_WINDOW if window is None else window,
        eps, scale * log2(e), power, HEADS=heads, HALF=half, ROWS=how.rows, KEYS=how.keys, PREPARED=how.prepared,
        RAW=True, SCALED=scaled, num_warps=WARPS, num_stages=how.stages, **dependent(tokens, qkv.device),
    )  # fmt: skip
    return out


def attention_fused(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float) -> Tensor:
    """See `engine.attention`: by FlashAttention, or in tiles where heads are wider and share one key/value head."""
    tokens, heads, width = q.shape
    if width <= FLASH_WIDTH:
        return varlen_attention(q, k, v, segments, window, scale)
    if k.shape[1] != 1:
        raise ValueError(f"{k.shape[1]} key/value heads of width {width}; one is expected")
    row, end = (heads + 2) * width, q.data_ptr() + heads * width * q.element_size()
    if (q.stride(0), k.data_ptr(), v.data_ptr()) != (row, end, end + width * q.element_size()):
        q = torch.cat([q, k, v], dim=1)  # elsewhere they are views of one projection already
    how = wide_tiling(q.device)
    tiles = with_tiles(segments, heads, how).tiles
    assert tiles is not None
    out = torch.empty(tokens, heads, width, dtype=q.dtype, device=q.device)
    _attend[(len(tiles),)](
        q, tiles, tiles, tiles, tiles, tiles, out, NO_WINDOW if window is None else window, 0.0, scale * log2(e),
        1.0, HEADS=heads, HALF=width // 2, ROWS=how.rows, KEYS=how.keys, PREPARED=True, RAW=False, SCALED=False,
        num_warps=WARPS, num_stages=how.stages, **dependent(tokens, q.device),
    )  # fmt: skip
    return out


@jit
def _list_tiles(  # type: ignore[no-untyped-def]
    cu_seqlens, tiles,
    HEADS: tl.constexpr, ROWS: tl.constexpr, SLOTS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    text = tl.program_id(0)
    begin = tl.load(cu_seqlens + text)
    end = tl.load(cu_seqlens + text + 1)
    first = text + HEADS * begin // ROWS
    last = text + 1 + HEADS * end // ROWS
    for start in range(first, last, SLOTS):
        slot = start + tl.arange(0, SLOTS)
        own = slot < last
        tl.store(tiles + slot * 4, begin + tl.zeros_like(slot), mask=own)
        tl.store(tiles + slot * 4 + 1, end - begin + tl.zeros_like(slot), mask=own)
        tl.store(tiles + slot * 4 + 2, (slot - first) * ROWS, mask=own)


@jit
def _rotated(  # type: ignore[no-untyped-def]
    x, gain, cos, sin, position, scales, inside, eps,
    HALF: tl.constexpr, SCALED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    if SCALED:  # the norm takes the row's scale away, but for its eps
        scale = tl.load(scales, mask=inside, other=1)
        eps = eps / (scale * scale)
    columns = tl.arange(0, HALF)[None, :]
    cos += position * HALF + columns
    sin += position * HALF + columns
    first, second = norm_rotate_rows(x + columns, gain + columns, cos, sin, inside, inside, eps, HALF)
    halves = tl.permute(tl.join(first, second), (0, 2, 1))
    return tl.reshape(halves, (halves.shape[0], 2 * HALF)).to(x.dtype.element_ty)


@jit
def _prepare_keys(  # type: ignore[no-untyped-def]
    keys, gain, cos, sin, positions, scales, tokens, eps,
    ROW: tl.constexpr, HALF: tl.constexpr, TOKENS: tl.constexpr, SCALED: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)[:, None]
    inside = token < tokens
    keys += token.to(tl.int64) * ROW
    position = tl.load(positions + token, mask=inside, other=0)
    rotated = _rotated(keys, gain, cos, sin, position, scales + token, inside, eps, HALF, SCALED)
    tl.store(keys + tl.arange(0, 2 * HALF)[None, :], rotated, mask=inside)


@jit
def _attend(  # type: ignore[no-untyped-def]
    qkv, tiles, gain, cos, sin, scales, out, window, eps, scale, power,
    HEADS: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, PREPARED: tl.constexpr,  # noqa: N803
    RAW: tl.constexpr, SCALED: tl.constexpr, DEPENDENT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    wait_for_others(DEPENDENT)
    tile = tiles + tl.program_id(0) * 4
    begin, length, first_row = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    if first_row >= HEADS * length:
        return
    WIDTH: tl.constexpr = 2 * HALF  # noqa: N806
    ROW: tl.constexpr = (HEADS + 2) * WIDTH  # noqa: N806
    columns = tl.arange(0, WIDTH)[None, :]
    row = first_row + tl.arange(0, ROWS)[:, None]
    token, head = row // HEADS, row % HEADS
    inside = row < HEADS * length
    text = qkv + begin.to(tl.int64) * ROW
    if RAW:
        q, own_gain, own_scale = text + token * ROW + head * WIDTH, gain + head * WIDTH, scales + (begin + token)
        q = _rotated(q, own_gain, cos, sin, token, own_scale, inside, eps, HALF, SCALED)
    else:
        q = tl.load(text + token * ROW + head * WIDTH + columns, mask=inside, other=0)
    largest, total = tl.full([ROWS], -1e30, tl.float32), tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, WIDTH], tl.float32)
    first_key = tl.maximum(first_row // HEADS - window, 0)
    end_of_keys = tl.minimum((first_row + ROWS - 1) // HEADS + window + 1, length)
    for start in range(first_key, end_of_keys, KEYS):
        key = start + tl.arange(0, KEYS)
        exists = (key < end_of_keys)[:, None]
        k_row = text + key[:, None] * ROW + HEADS * WIDTH
        if PREPARED:
            k = tl.load(k_row + columns, mask=exists, other=0)
        else:
            k_scales = scales + (begin + key[:, None])
            k = _rotated(k_row, gain + HEADS * WIDTH, cos, sin, key[:, None], k_scales, exists, eps, HALF, SCALED)
        v = tl.load(k_row + WIDTH + columns, mask=exists, other=0)
        visible = (key < end_of_keys)[None, :] & ((key[None, :] - token + window).to(tl.uint32) <= 2 * window)
        # Finite, as the difference of two infinities is NaN; the first visible key's weight makes it vanish.
        scores = tl.where(visible, tl.dot(q, k.T) * scale, -1e30)  # [ROWS, KEYS]
        before, largest = largest, tl.maximum(largest, tl.max(scores, axis=1))
        weights, shrunk = tl.exp2(scores - largest[:, None]), tl.exp2(before - largest)
        total = total * shrunk + tl.sum(weights, axis=1)
        if SCALED:  # fewer numbers than the values that they are to scale
            weights *= tl.load(scales + (begin + key), mask=key < end_of_keys, other=0)[None, :]
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrunk[:, None])
    # Read again, as the loop has no register to spare for what only the end needs.
    begin = tl.load(tile, volatile=True).to(tl.int64)
    row = tl.load(tile + 2, volatile=True) + tl.arange(0, ROWS)[:, None]
    out += begin * (HEADS * WIDTH) + row * WIDTH + columns
    tl.store(out, (mixed * (power / total)[:, None]).to(qkv.dtype.element_ty), mask=inside)
