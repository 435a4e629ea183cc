"""The mean of each text's tokens. No sum includes another text, so NaN stays where it is and needs no mask."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from engine.kernels.triton_import import jit, tl

BLOCK_TOKENS, BLOCK_COLUMNS = 32, 64


def segment_mean(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """Return float32 [texts, hidden] for float32 `x` [tokens, hidden]; zeros where a text has no tokens.

    `cu_seqlens`, int32 [texts + 1], holds where each text begins and where the last one ends; the host reads it.
    """
    return torch.stack([x[start:end].sum(dim=0) / max(end - start, 1) for start, end in pairwise(cu_seqlens.tolist())])


def segment_mean_fused(x: Tensor, cu_seqlens: Tensor) -> Tensor:
    """See `segment_mean`. One program for each text and block of columns; the host reads nothing."""
    hidden, texts = x.shape[1], cu_seqlens.shape[0] - 1
    out = torch.empty(texts, hidden, dtype=torch.float32, device=x.device)
    _segment_mean[(texts, -(-hidden // BLOCK_COLUMNS))](
        x, cu_seqlens, out, HIDDEN=hidden, TOKENS=BLOCK_TOKENS, COLUMNS=BLOCK_COLUMNS, num_warps=4
    )
    return out


@jit
def _segment_mean(  # type: ignore[no-untyped-def]
    x, cu_seqlens, out,
    HIDDEN: tl.constexpr, TOKENS: tl.constexpr, COLUMNS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    text = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(cu_seqlens + text)
    end = tl.load(cu_seqlens + text + 1)
    total = tl.zeros([TOKENS, COLUMNS], dtype=tl.float32)
    for first in range(start, end, TOKENS):
        tokens = first + tl.arange(0, TOKENS)
        inside = (tokens < end)[:, None] & (columns < HIDDEN)[None, :]
        total += tl.load(x + tokens.to(tl.int64)[:, None] * HIDDEN + columns[None, :], mask=inside, other=0)
    mean = tl.sum(total, axis=0) / tl.maximum(end - start, 1).to(tl.float32)
    tl.store(out + text * HIDDEN + columns, mean, mask=columns < HIDDEN)
