"""Attention within each text of a packed stream: every token sees its whole text, or |i - j| <= window of it.

Two ways to compute the same: scaled_dot_product_attention, grouped, anywhere; FlashAttention on newer GPUs.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.packing import Segments

# Queries of one block in a long sliding-window text: smaller ones look at less outside the window, but are more calls.
BLOCK = 128


class Attend(Protocol):
    """q [tokens, heads, head_dim], k and v [tokens, kv_heads, head_dim] to [tokens, heads, head_dim]."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None) -> Tensor:
        """Mix the values of each text. `window` is the largest visible |i - j|, None where all is visible."""
        ...


def attention_for(device: torch.device, dtype: torch.dtype, scale: float) -> Attend:
    """Return the fastest exact attention for the device. FlashAttention needs compute capability 8.0 and 16 bit."""
    if device.type == "cuda" and dtype != torch.float32 and torch.cuda.get_device_capability(device) >= (8, 0):
        return VarlenAttention(scale)
    return GroupedAttention(scale)


class GroupedAttention:
    """scaled_dot_product_attention over neighbouring texts of exactly one length, so that nothing is ever padded."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None) -> Tensor:
        """See `Attend`. Texts of one length share a call only where they are neighbours in the stream."""
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        k, v = _for_each_query_head(k, q.shape[1]), _for_each_query_head(v, q.shape[1])
        for tokens, length in _groups(segments.lengths):
            # [tokens, heads, head_dim] -> [texts, heads, length, head_dim], views all
            qs, ks, vs, outs = (x[tokens].unflatten(0, (-1, length)).transpose(1, 2) for x in (q, k, v, out))
            if window is None or length <= window + 1:
                outs.copy_(F.scaled_dot_product_attention(qs, ks, vs, scale=self.scale))
            else:
                self._attend_in_blocks(qs, ks, vs, outs, window)
        return out

    def _attend_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, window: int) -> None:
        """Fill `out` block by block of queries, each against the only keys that any of them may see."""
        length = q.shape[2]
        for start in range(0, length, BLOCK):
            end = min(start + BLOCK, length)
            first, last = max(0, start - window), min(length, end + window)
            mask = _window_mask(end - start, last - first, start - first, window, q.device)
            keys, values = k[:, :, first:last], v[:, :, first:last]
            block = F.scaled_dot_product_attention(q[:, :, start:end], keys, values, mask, scale=self.scale)
            out[:, :, start:end] = block


class VarlenAttention:
    """FlashAttention over the whole stream in one kernel, by torch.nn.attention.varlen.

    For CUDA devices of compute capability 8.0 and up, float16 and bfloat16, head_dim up to 256. Its tests are those
    in tests/engine/test_gpu.py, which run only where such a GPU is at hand.
    """

    def __init__(self, scale: float) -> None:
        from torch.nn.attention.varlen import varlen_attn

        self.scale = scale
        self._varlen_attn: Callable[..., Any] = varlen_attn
        # Releases before enable_gqa take fewer key/value heads as they are; later ones want to be told.
        self._gqa = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, segments: Segments, window: int | None) -> Tensor:
        """See `Attend`."""
        longest = segments.longest
        sides = (-1, -1) if window is None else (window, window)
        cu_seqlens = segments.cu_seqlens
        out: Tensor = self._varlen_attn(
            q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=self.scale, window_size=sides, **self._gqa
        )
        return out


def _for_each_query_head(x: Tensor, heads: int) -> Tensor:
    """Repeat key/value heads: [tokens, kv_heads, head_dim] to [tokens, heads, head_dim]. Of a single one, a view."""
    tokens, kv_heads, head_dim = x.shape
    return x[:, :, None].expand(tokens, kv_heads, heads // kv_heads, head_dim).flatten(1, 2)


def _groups(lengths: Sequence[int]) -> Iterator[tuple[slice, int]]:
    """Yield the stream's runs of texts of equal length: the slice of tokens, and the length."""
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
