"""RMS norms with their neighbours: the embedding before the first norm, the residual sum between two norms.

Each exists in PyTorch (for CPUs, as the fallback, and for tests to compare with) and as a Triton kernel with a program
for each token. Both compute norms in float32 and round the residual stream to its own format before its norm.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.launching import dependent, wait_for_others
from engine.kernels.triton_import import block, jit, tl


class RMSNorm(nn.Module):
    """A root mean square norm over the last dimension: float32 `gain`, `eps`, and the `dtype` of its result.

    `gain` is (1 + the checkpoint's weight) * scale, in EmbeddingGemma 2 the weight * scale.
    """

    def __init__(self, *shape: int, eps: float, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> None:
        super().__init__()
        self.eps, self.dtype, self.scale = eps, dtype, scale
        self.gain = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)


class Unnormed(NamedTuple):
    """What is left of a norm, `stream * inverse_rms[:, None] * gain`, for the matmul that reads it to complete."""

    stream: Tensor  # [tokens, hidden], until the next sum is written there
    inverse_rms: Tensor  # float32 [tokens]: 1 / sqrt(mean(x^2) + eps)
    gain: Tensor  # float32 [hidden]


def rms_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """Return float32 of x's shape: x / sqrt(mean(x^2) + eps) * gain."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=norm.eps) * norm.gain


def embed_norm(
    token_ids: Tensor, table: Tensor, scale: float, norm: RMSNorm, stream: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the residual stream as `stream` and its norm as norm.dtype, [tokens, hidden], for integer ids [tokens]."""
    rows = F.embedding(token_ids, table).to(stream)
    x = (rows.float() * scale).to(stream)
    return x, rms_norm(x, norm).to(norm.dtype)


def add_norm(
    x: Tensor, y: Tensor, post: RMSNorm, pre: RMSNorm | None, factor: float = 1.0, folds: bool = False
) -> Tensor | Unnormed:
    """Add post(y) to the stream `x` in place, multiply it, and return pre(x) as pre.dtype; all [tokens, hidden].

    Without `pre`, return x in y's format: x itself where that is its own. With `folds`, leave pre(x) to a matmul.
    """
    added = rms_norm(y, post)
    if factor == 1.0:
        x.add_(added)
    else:
        x.copy_(added.add_(x).mul_(factor))
    if pre is None:
        return x.to(y.dtype)
    if folds:
        return Unnormed(x, x.float().square().mean(dim=-1).add(pre.eps).rsqrt(), pre.gain)
    return rms_norm(x, pre).to(pre.dtype)


def embed_norm_fused(
    token_ids: Tensor, table: Tensor, scale: float, norm: RMSNorm, stream: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `embed_norm`."""
    tokens, hidden = token_ids.shape[0], table.shape[1]
    x = torch.empty(tokens, hidden, dtype=stream, device=table.device)
    normed = torch.empty(tokens, hidden, dtype=norm.dtype, device=table.device)
    _embed_norm[(tokens,)](
        token_ids, table, norm.gain, x, normed, scale, norm.eps, HIDDEN=hidden, BLOCK=block(hidden), num_warps=4
    )
    return x, normed


def add_norm_fused(
    x: Tensor, y: Tensor, post: RMSNorm, pre: RMSNorm | None, factor: float = 1.0, folds: bool = False
) -> Tensor | Unnormed:
    """See `add_norm`."""
    tokens, hidden = x.shape
    in_place = pre is None and x.dtype == y.dtype
    shape, dtype = ((tokens,), torch.float32) if folds else ((tokens, hidden), pre.dtype if pre else y.dtype)
    out = x if in_place else torch.empty(shape, dtype=dtype, device=x.device)
    _add_norm[(tokens,)](
        x, y, post.gain, (pre or post).gain, out, post.eps, (pre or post).eps, factor,
        HIDDEN=hidden, BLOCK=block(hidden), NORMS=pre is not None, FOLDS=folds, num_warps=4,
        **dependent(tokens, x.device),
    )  # fmt: skip
    return Unnormed(x, out, pre.gain) if pre and folds else out


@jit
def _inverse_rms(values, eps, HIDDEN: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    return tl.rsqrt(tl.sum(values * values, axis=0) / HIDDEN + eps)


@jit
def normed_row(values, gain, eps, columns, inside, HIDDEN: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    return values * _inverse_rms(values, eps, HIDDEN) * tl.load(gain + columns, mask=inside, other=0)


@jit
def _embed_norm(  # type: ignore[no-untyped-def]
    token_ids, table, gain, x, normed, scale, eps,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    row = tl.load(token_ids + token).to(tl.int64)
    values = tl.load(table + row * HIDDEN + columns, mask=inside, other=0)
    values = (values.to(x.dtype.element_ty).to(tl.float32) * scale).to(x.dtype.element_ty)
    tl.store(x + token * HIDDEN + columns, values, mask=inside)
    values = normed_row(values.to(tl.float32), gain, eps, columns, inside, HIDDEN)
    tl.store(normed + token * HIDDEN + columns, values.to(normed.dtype.element_ty), mask=inside)


@jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, y, post_gain, pre_gain, out, post_eps, pre_eps, factor,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr, NORMS: tl.constexpr, FOLDS: tl.constexpr,  # noqa: N803
    DEPENDENT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    offsets = token * HIDDEN + columns
    wait_for_others(DEPENDENT)
    added = tl.load(y + offsets, mask=inside, other=0).to(tl.float32)
    stream = tl.load(x + offsets, mask=inside, other=0).to(tl.float32)
    stream = (stream + normed_row(added, post_gain, post_eps, columns, inside, HIDDEN)) * factor
    stream = stream.to(x.dtype.element_ty)
    tl.store(x + offsets, stream, mask=inside)
    values = stream.to(tl.float32)
    if FOLDS:
        tl.store(out + token, _inverse_rms(values, pre_eps, HIDDEN))
    else:
        if NORMS:
            values = normed_row(values, pre_gain, pre_eps, columns, inside, HIDDEN)
        tl.store(out + offsets, values.to(out.dtype.element_ty), mask=inside)
