"""RMS norms with their neighbours: the embedding before the first norm, the residual sum between two norms.

Each exists in PyTorch (for CPUs, as the fallback, and for tests to compare with) and as a Triton kernel with a program
for each token. Both compute norms in float32 and round the residual stream to its own format before its norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.kernels.triton_import import block, jit, tl


class RMSNorm(nn.Module):
    """A root mean square norm over the last dimension: float32 `gain`, `eps`, and the `dtype` of its result.

    `gain` is (1 + the checkpoint's weight) * scale.
    """

    def __init__(self, *shape: int, eps: float, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> None:
        super().__init__()
        self.eps, self.dtype, self.scale = eps, dtype, scale
        self.gain = nn.Parameter(torch.empty(shape, dtype=torch.float32), requires_grad=False)


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


def add_norm(x: Tensor, y: Tensor, post: RMSNorm, pre: RMSNorm) -> Tensor:
    """Add post(y) to the stream `x` in place and return pre(x) as pre.dtype; all [tokens, hidden]."""
    x.add_(rms_norm(y, post))
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


def add_norm_fused(x: Tensor, y: Tensor, post: RMSNorm, pre: RMSNorm) -> Tensor:
    """See `add_norm`."""
    tokens, hidden = x.shape
    normed = torch.empty(tokens, hidden, dtype=pre.dtype, device=x.device)
    _add_norm[(tokens,)](
        x, y, post.gain, pre.gain, normed, post.eps, pre.eps, HIDDEN=hidden, BLOCK=block(hidden), num_warps=4
    )
    return normed


@jit
def _normed(values, gain, eps, columns, inside, HIDDEN: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    scale = tl.rsqrt(tl.sum(values * values, axis=0) / HIDDEN + eps)
    return values * scale * tl.load(gain + columns, mask=inside, other=0)


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
    values = _normed(values.to(tl.float32), gain, eps, columns, inside, HIDDEN)
    tl.store(normed + token * HIDDEN + columns, values.to(normed.dtype.element_ty), mask=inside)


@jit
def _add_norm(  # type: ignore[no-untyped-def]
    x, y, post_gain, pre_gain, normed, post_eps, pre_eps,
    HIDDEN: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < HIDDEN
    offsets = token * HIDDEN + columns
    added = tl.load(y + offsets, mask=inside, other=0).to(tl.float32)
    stream = tl.load(x + offsets, mask=inside, other=0).to(tl.float32)
    stream = (stream + _normed(added, post_gain, post_eps, columns, inside, HIDDEN)).to(x.dtype.element_ty)
    tl.store(x + offsets, stream, mask=inside)
    values = _normed(stream.to(tl.float32), pre_gain, pre_eps, columns, inside, HIDDEN)
    tl.store(normed + offsets, values.to(normed.dtype.element_ty), mask=inside)
