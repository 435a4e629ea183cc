"""Attention within each text of a packed batch: a token sees its whole text, or |i - j| <= window of it.

Two functions compute the same: `grouped_attention` by scaled_dot_product_attention, on any device, and
`varlen_attention` by FlashAttention, on newer GPUs. Both take q [tokens, heads, head_dim], k and v [tokens, kv_heads,
head_dim], the texts' segments, the largest visible |i - j| (None for the whole text) and the scale of the scores, and
return [tokens, heads, head_dim].
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.packing import Segments

# Queries in one block of a long sliding-window text. Smaller blocks compute fewer scores outside the window, but need
# more calls.
BLOCK = 128


def grouped_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float) -> Tensor:
    """Attend with a call for each run of neighbouring texts of equal length, so nothing is padded."""
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    k, v = _for_each_query_head(k, q.shape[1]), _for_each_query_head(v, q.shape[1])
    for tokens, length in _runs_of_equal_length(segments.lengths):
        # [tokens, heads, head_dim] -> [texts, heads, length, head_dim], all views
        qs, ks, vs, outs = (x[tokens].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v, out))
        if window is None or length <= window + 1:
            outs.copy_(F.scaled_dot_product_attention(qs, ks, vs, scale=scale))
        else:
            _attend_in_blocks(qs, ks, vs, outs, window, scale)
    return out


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None, scale: float) -> Tensor:
    """Attend in one kernel for the whole batch, without reading lengths on the host.

    For CUDA devices of compute capability 8.0 and up, float16 and bfloat16, head_dim up to 256, kv_heads that divide
    heads. This is the operator
    that `torch.nn.attention.varlen.varlen_attn` calls, without its additions for training. There a window as large as
    the longest text costs nothing.
    """
    cu_seqlens, longest, side = segments.cu_seqlens, segments.longest, -1 if window is None else window
    out: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, 0.0, False, False,
        scale=scale, window_size_left=side, window_size_right=side,
    )[0]  # fmt: skip
    return out


def _attend_in_blocks(q: Tensor, k: Tensor, v: Tensor, out: Tensor, window: int, scale: float) -> None:
    """Fill `out` block by block of queries, each against only the keys that some query of the block may see."""
    length = q.shape[2]
    for start in range(0, length, BLOCK):
        end = min(start + BLOCK, length)
        first, last = max(0, start - window), min(length, end + window)
        mask = _window_mask(end - start, last - first, start - first, window, q.device)
        keys, values = k[:, :, first:last], v[:, :, first:last]
        out[:, :, start:end] = F.scaled_dot_product_attention(q[:, :, start:end], keys, values, mask, scale=scale)


def _for_each_query_head(x: Tensor, heads: int) -> Tensor:
    """Repeat key/value heads: [tokens, kv_heads, head_dim] to [tokens, heads, head_dim]; a view of a single head."""
    tokens, kv_heads, head_dim = x.shape
    return x[:, :, None].expand(tokens, kv_heads, heads // kv_heads, head_dim).flatten(1, 2)


def _runs_of_equal_length(lengths: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Yield each run of neighbouring texts of equal length: the slice of its tokens, and the length."""
    start = 0
    for length, run in groupby(lengths):
        end = start + length * sum(1 for _ in run)
        yield slice(start, end), length
        start = end


@lru_cache(maxsize=256)
def _window_mask(queries: int, keys: int, offset: int, window: int, device: torch.device) -> Tensor:
    """Return bool [queries, keys], true where visible; query 0 stands at key `offset`."""
    distance = torch.arange(queries, device=device)[:, None] + offset - torch.arange(keys, device=device)
    return distance.abs() <= window
