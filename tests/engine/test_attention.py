"""Attention against its definition: a dense softmax for each text, the window as |i - j| <= window."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from engine.attention import grouped_attention, varlen_attention
from engine.packing import Segments
from tests.support.vectors import segments_of

HEADS, HEAD_DIM = 3, 32


def random_batch(lengths: list[int], kv_heads: int = 1) -> tuple[Tensor, Tensor, Tensor, Segments]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, HEAD_DIM, generator=generator) for heads in (HEADS, kv_heads, kv_heads))
    return q, k, v, segments_of(lengths)


def by_definition(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None) -> Tensor:
    """A single text: [length, heads, head_dim], in float64."""
    q, k, v = q.double(), *(x.double().repeat_interleave(HEADS // x.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * scale
    if window is not None:
        positions = torch.arange(q.shape[0])
        scores[:, (positions[:, None] - positions).abs() > window] = -torch.inf
    return torch.einsum("hij,jhd->ihd", scores.softmax(-1), v).float()


@pytest.mark.parametrize("window", [None, 256, 5, 0])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_every_text_attends_to_itself_alone(window: int | None, kv_heads: int) -> None:
    lengths = [600, 300, 300, 257, 258, 17, 17, 1, 1, 2]
    q, k, v, segments = random_batch(lengths, kv_heads)
    mixed = grouped_attention(q, k, v, segments, window, 0.1)
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    expected = torch.cat([by_definition(q, k, v, 0.1, window) for q, k, v in parts])
    assert (mixed - expected).abs().max() < 2e-6


@pytest.mark.parametrize("length", [257, 258, 384, 385, 640])
def test_the_window_ends_where_it_should(length: int) -> None:
    q, k, v, segments = random_batch([length])
    before = grouped_attention(q, k, v, segments, 256, 0.1)
    v[0] += 1
    changed = (grouped_attention(q, k, v, segments, 256, 0.1) != before).any(-1).any(-1)
    assert changed.nonzero().max() == min(256, length - 1)


def test_neighbours_made_of_nan_change_nothing() -> None:
    lengths = [300, 300, 40]
    q, k, v, segments = random_batch(lengths)
    clean = grouped_attention(q, k, v, segments, 256, 0.1)
    for x in (q, k, v):
        x[300:600] = torch.nan
    poisoned = grouped_attention(q, k, v, segments, 256, 0.1)
    assert torch.equal(poisoned[:300], clean[:300]) and torch.equal(poisoned[600:], clean[600:])


def test_an_output_buffer_of_nan_is_filled_entirely(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, segments = random_batch([600, 257, 3])
    expected = grouped_attention(q, k, v, segments, 256, 0.1)

    def poisoned(size: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(size, torch.nan, dtype=dtype, device=device)

    monkeypatch.setattr(torch, "empty", poisoned)
    assert torch.equal(grouped_attention(q, k, v, segments, 256, 0.1), expected)


def test_a_single_head_of_keys_is_shared_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v, segments = random_batch([4])
    called: list[Tensor] = []

    def noting(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        called.extend((k, v))
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", noting)
    grouped_attention(q, k, v, segments, None, 0.1)
    assert [x.data_ptr() for x in called] == [k.data_ptr(), v.data_ptr()]


def test_segments() -> None:
    segments = segments_of([3, 1, 2])
    assert segments.cu_seqlens.tolist() == [0, 3, 4, 6] and segments.cu_seqlens.dtype == torch.int32
    assert segments.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert segments.longest == 3 and segments.positions.dtype == torch.int32


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="a text without tokens has no vector"):
        segments_of([3, 0])


@pytest.mark.usefixtures("flash_on_cpu")
@pytest.mark.parametrize("window", [None, 256, 5])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_flash_attention_is_asked_for_the_same(window: int | None, kv_heads: int) -> None:
    q, k, v, segments = random_batch([600, 258, 17, 1, 2], kv_heads)
    static = replace(segments, longest=2048, lengths=())  # as in a graph: the host knows no lengths
    mixed = varlen_attention(q, k, v, static, window, 0.1)
    assert (mixed - grouped_attention(q, k, v, segments, window, 0.1)).abs().max() < 2e-6
