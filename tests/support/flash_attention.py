"""What FlashAttention computes, by definition, for CPUs: behind torch's own operator, with its own arguments."""

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, cum_seq_q: Tensor, cum_seq_k: Tensor, max_q: int, max_k: int,
    dropout_p: float, is_causal: bool, return_debug_mask: bool, *, scale: float | None = None,
    window_size_left: int | None = None, window_size_right: int | None = None, **others: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Attend by cum_seq_q alone; rows outside stay NaN. The other outputs are empty."""
    assert cum_seq_q is cum_seq_k or torch.equal(cum_seq_q, cum_seq_k)
    assert not dropout_p and not is_causal and not any(option is not None for option in others.values())
    assert window_size_left == window_size_right and window_size_left is not None
    out = torch.full_like(query, torch.nan)
    for start, end in pairwise(cum_seq_q.tolist()):
        assert end - start <= max_q == max_k
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        positions = torch.arange(end - start)
        seen = (positions[:, None] - positions).abs() <= (window_size_left if window_size_left >= 0 else end)
        out[start:end] = F.scaled_dot_product_attention(q, k, v, seen, scale=scale, enable_gqa=True).transpose(0, 1)
    return (out, *(torch.empty(0) for _ in range(4)))
