"""Norm of queries and keys, then their rotation by position (RoPE; Su et al., arXiv:2104.09864)."""

from __future__ import annotations

from functools import cache, cached_property

import torch
from torch import Tensor

from engine.kernels.norms import RMSNorm, rms_norm
from engine.kernels.triton_import import block, jit, tl

# Smallest number of rows in a table of angles: the model's limit of tokens.
POSITIONS = 2048


class Rotation:
    """The angles of a batch's tokens: float32 tables `cos` and `sin` [rows, head_dim / 2], a row for each position."""

    def __init__(self, positions: Tensor, longest: int, theta: float, head_dim: int) -> None:
        """Take integer `positions` [tokens], all below `longest`. Tables are computed once for each size."""
        self.positions = positions
        self.cos, self.sin = _tables(max(POSITIONS, block(longest)), theta, head_dim, positions.device)

    @cached_property
    def of_tokens(self) -> tuple[Tensor, Tensor]:
        """Cosine and sine of each token, float32 [tokens, 1, head_dim / 2]."""
        return self.cos[self.positions][:, None], self.sin[self.positions][:, None]

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate float32 [tokens, heads, head_dim]; the first half of head_dim pairs with the second."""
        cos, sin = self.of_tokens
        first, second = x.chunk(2, dim=-1)
        rotated = torch.empty_like(x)
        out_first, out_second = rotated.chunk(2, dim=-1)
        torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)
        torch.mul(second, cos, out=out_second).addcmul_(first, sin)
        return rotated


@cache  # never dropped: captured graphs read these addresses
def _tables(rows: int, theta: float, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cos and sin for the positions 0 to `rows` - 1, computed in float32 as transformers does."""
    powers = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    angles = torch.arange(rows, device=device)[:, None].float() * (1.0 / theta**powers)
    return angles.cos(), angles.sin()


def norm_rotate(qk: Tensor, norm: RMSNorm, rotation: Rotation, rotated: int | None = None) -> Tensor:
    """Return heads normed and the first `rotated` of them rotated, [tokens, heads, head_dim] in their own format.

    The heads are queries and keys, which are all rotated, and values where these are normed. `qk` may be a view into
    the fused projection and may be overwritten. Norm and rotation are float32.
    """
    normed = rms_norm(qk, norm)
    if rotated is None or rotated == qk.shape[1]:
        return rotation(normed).to(qk.dtype)
    return torch.cat([rotation(normed[:, :rotated]), normed[:, rotated:]], dim=1).to(qk.dtype)


def norm_rotate_fused(qk: Tensor, norm: RMSNorm, rotation: Rotation, rotated: int | None = None) -> Tensor:
    """See `norm_rotate`. In place, one program for each token; two warps, so each thread moves 16 bytes at once."""
    tokens, heads, head_dim = qk.shape
    half = head_dim // 2
    _norm_rotate[(tokens,)](
        qk, norm.gain, rotation.cos, rotation.sin, rotation.positions, norm.eps,
        ROW=qk.stride(0), HEADS=heads, ROTATED=rotated or heads, HALF=half, HEADS_BLOCK=block(heads),
        HALF_BLOCK=block(half), num_warps=2,
    )  # fmt: skip
    return qk


@jit
def norm_rotate_rows(x, gain, cos, sin, inside, has_angle, eps, HALF: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """Return both halves of rows, float32 and as `norm_rotate` has them, for pointers to all first halves.

    A row without an angle is not rotated.
    """
    first = tl.load(x, mask=inside, other=0).to(tl.float32)
    second = tl.load(x + HALF, mask=inside, other=0).to(tl.float32)
    squares = tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)
    scale = tl.rsqrt(squares[:, None] / (2 * HALF) + eps)
    first = first * scale * tl.load(gain, mask=inside, other=0)
    second = second * scale * tl.load(gain + HALF, mask=inside, other=0)
    cosine = tl.load(cos, mask=has_angle, other=1)
    sine = tl.load(sin, mask=has_angle, other=0)
    return first * cosine - second * sine, second * cosine + first * sine


@jit
def _norm_rotate(  # type: ignore[no-untyped-def]
    qk, gain, cos, sin, positions, eps,
    ROW: tl.constexpr, HEADS: tl.constexpr, ROTATED: tl.constexpr, HALF: tl.constexpr,  # noqa: N803
    HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    heads = tl.arange(0, HEADS_BLOCK)[:, None]
    columns = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (heads < HEADS) & (columns < HALF)
    gain += heads * (2 * HALF) + columns
    qk += token * ROW + heads * (2 * HALF) + columns
    angles = tl.load(positions + token).to(tl.int64) * HALF + columns
    has_angle = columns < HALF
    if ROTATED < HEADS:  # values are not rotated
        angles += heads * 0
        has_angle = has_angle & (heads < ROTATED)
    first, second = norm_rotate_rows(qk, gain, cos + angles, sin + angles, inside, has_angle, eps, HALF)
    tl.store(qk, first.to(qk.dtype.element_ty), mask=inside)
    tl.store(qk + HALF, second.to(qk.dtype.element_ty), mask=inside)
