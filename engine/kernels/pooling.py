"""The mean of each vector's tokens. No sum includes another text, so NaN does not spread and no mask is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.kernels.triton_import import jit, tl
from engine.packing import Segments

BLOCK_TOKENS, BLOCK_COLUMNS = 32, 64


def segment_mean(x: Tensor, segments: Segments) -> Tensor:
    """Return float32 [vectors, hidden] for float32 `x` [tokens, hidden]; zeros for a vector of no tokens.

    Unless the host knows where they begin and end, it reads that from the device, which has to be idle.
    """
    spans = segments.spans or zip(segments.starts.tolist(), segments.ends.tolist(), strict=True)
    return torch.stack([x[start:end].sum(dim=0) / max(end - start, 1) for start, end in spans])


def segment_mean_fused(x: Tensor, segments: Segments) -> Tensor:
    """See `segment_mean`. One program for each vector and block of columns; the host reads nothing."""
    hidden, vectors = x.shape[1], segments.starts.shape[0]
    out = torch.empty(vectors, hidden, dtype=torch.float32, device=x.device)
    _segment_mean[(vectors, -(-hidden // BLOCK_COLUMNS))](
        x, segments.starts, segments.ends, out,
        HIDDEN=hidden, TOKENS=BLOCK_TOKENS, COLUMNS=BLOCK_COLUMNS, num_warps=4,
    )  # fmt: skip
    return out


@jit
def _segment_mean(  # type: ignore[no-untyped-def]
    x, starts, ends, out,
    HIDDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    vector = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(starts + vector)
    end = tl.load(ends + vector)
    total = tl.zeros([TOKENS, COLUMNS], dtype=tl.float32)
    for first in range(start, end, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        inside = (tokens < end)[:, None] & (columns < HIDDEN)[None, :]
        total += tl.load(x + tokens.to(tl.int64)[:, None] * HIDDEN + columns[None, :], mask=inside, other=0)
    mean = tl.sum(total, axis=0) / tl.maximum(end - start, 1).to(tl.float32)
    tl.store(out + vector * HIDDEN + columns, mean, mask=columns < HIDDEN)
