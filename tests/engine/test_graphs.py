"""Which graph a batch gets, and that a batch in static buffers gets the vectors that it gets by itself.

Here a replay is the forward pass over the same buffers; tests/engine/test_gpu.py has captured graphs.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.attention import varlen

from engine.checkpoint import load_network, read_architecture
from engine.graphs import BUCKETS, COMMON_TOKENS, Graphs, Run, capturable
from engine.kernels import FUSED, PLAIN
from engine.model import FLOAT32, Network
from engine.packed import PackedEngine
from engine.packing import Layout, Segments
from tests.support.vectors import errors, random_ids, unit
from weights import SMALL

CPU = torch.device("cpu")
SMALL_BUCKETS = [Layout(600, 20), Layout(40, 5), Layout(100, 8)]
NAN_ID = 5000


def as_it_is(forward: Run) -> Run:
    return forward


def varlen_attn(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor | None, max_q: int, max_k: int, *,
    scale: float | None = None, window_size: tuple[int, int] = (-1, -1), enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """What FlashAttention computes, by definition, for CPUs: from cu_seqlens alone. Rows outside stay NaN."""
    out = torch.full_like(query, torch.nan)
    for start, end in pairwise(cu_seq_q.tolist()):
        assert end - start <= max_q == max_k and enable_gqa
        q, k, v = (x[start:end].transpose(0, 1) for x in (query, key, value))
        positions = torch.arange(end - start)
        seen = (positions[:, None] - positions).abs() <= (window_size[0] if window_size[0] >= 0 else end)
        out[start:end] = torch.nn.functional.scaled_dot_product_attention(
            q, k, v, seen, scale=scale, enable_gqa=True
        ).transpose(0, 1)
    return out


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    """The small checkpoint as a GPU runs it: its attention reads lengths from cu_seqlens alone. One token is NaN."""
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    network = load_network(SMALL, read_architecture(SMALL), FLOAT32, CPU)
    network.kernels = replace(PLAIN, attention=FUSED.attention)
    table = network.embedding.table.clone()
    table[NAN_ID] = torch.nan
    network.embedding.table.data = table
    return network


def texts_of(*lengths: int) -> list[list[int]]:
    return [[6 if i == NAN_ID else i for i in random_ids(length)] for length in lengths]


def test_the_smallest_bucket_that_fits() -> None:
    graphs = Graphs(lambda ids, segments: ids, CPU, as_it_is, SMALL_BUCKETS)
    chosen = [graphs.bucket(*size) for size in [(1, 1), (40, 5), (40, 6), (39, 5), (101, 1), (600, 20), (600, 21)]]
    tokens = [bucket.tokens if bucket else None for bucket in chosen]
    assert tokens == [40, 40, 100, 100, 600, 600, None]
    assert graphs.bucket(601, 1) is None


def test_the_default_buckets_hold_single_texts_and_batches_of_short_ones() -> None:
    graphs = Graphs(lambda ids, segments: ids, CPU, as_it_is)
    for length in (2, 31, 32, 33, 64, 500, 2048):
        bucket = graphs.bucket(length, 1)
        assert bucket and bucket.tokens < max(33, 1.6 * length)
    assert graphs.bucket(16 * 20, 16) and graphs.bucket(2049, 1) is None
    assert [bucket.tokens for bucket in BUCKETS if bucket.tokens <= COMMON_TOKENS] == [32, 48, 64, 96, 128]


def test_batches_that_shrink_and_grow_in_poisoned_buffers(network: Network) -> None:
    plain = PackedEngine(SMALL, "cpu")
    with torch.inference_mode():
        graphs = Graphs(network, CPU, as_it_is, SMALL_BUCKETS)
        graphs.prepare(most_tokens=600)
        for lengths in [(300, 290, 10), (30,), (5, 4, 3), (90, 5), (600,), (2,), (40,), (7, 33), (1, 1, 1, 37)]:
            texts = texts_of(*lengths)
            bucket = graphs.bucket(sum(lengths), len(lengths))
            assert bucket
            poisoned = graphs.run(bucket, bucket.pack([[NAN_ID] * bucket.tokens]))  # what this batch overwrites
            assert poisoned is not None and poisoned[0].isnan().all()
            host = torch.full((bucket.size,), NAN_ID, dtype=torch.int32)
            bucket.fill(host.numpy(), texts)
            replayed = graphs.run(bucket, host)
            assert replayed is not None and replayed.shape == (bucket.texts, 768)
            vectors, expected = replayed[: len(texts)].numpy(), plain.embed(texts)
            assert np.isfinite(vectors).all() and errors(vectors, expected)[0] <= 1e-6, lengths
            assert np.abs(unit(vectors) - unit(expected)).max() <= 1e-6


def test_a_poisoned_text_stays_alone(network: Network) -> None:
    layout, texts = Layout(40, 5), texts_of(9, 12, 4)
    with torch.inference_mode():
        graphs = Graphs(network, CPU, as_it_is, [layout])
        clean = graphs.run(layout, layout.pack(texts))
        texts[1][3] = NAN_ID
        poisoned = graphs.run(layout, layout.pack(texts))
    assert clean is not None and poisoned is not None
    assert poisoned[1].isnan().all() and torch.equal(poisoned[[0, 2]], clean[[0, 2]])


def test_the_engine_replays_small_batches_and_only_those(network: Network) -> None:
    plain, engine = PackedEngine(SMALL, "cpu"), PackedEngine(SMALL, "cpu")
    replayed: list[int] = []

    def counting(forward: Run) -> Run:
        def run() -> Tensor:
            out = forward()
            replayed.append(len(out))
            return out

        return run

    engine.graphs = Graphs(network, CPU, counting, SMALL_BUCKETS)
    for lengths, times in (((20, 10), 2), ((21, 9), 1), ((700,), 0), ((500, 50), 2)):
        replayed.clear()
        texts = texts_of(*lengths)
        assert errors(engine.embed(texts), plain.embed(texts))[0] <= 1e-6
        assert len(replayed) == times  # once more when it is captured, for the comparison


def test_the_largest_is_captured_first_and_the_rest_when_needed(network: Network) -> None:
    order: list[int] = []

    def counting(forward: Run) -> Run:
        order.append(len(forward()))
        return forward

    with torch.inference_mode():
        graphs = Graphs(network, CPU, counting, SMALL_BUCKETS)
        graphs.prepare(most_tokens=100)
        assert order == [8, 5]
        for _ in range(2):
            graphs.run(Layout(600, 20), Layout(600, 20).pack(texts_of(300)))
    assert order == [8, 5, 20]


def failing(forward: Run) -> Run:
    raise RuntimeError("operation not permitted when stream is capturing")


def wrong(forward: Run) -> Run:
    return lambda: forward() * 1.1


@pytest.mark.parametrize(
    ("capture", "words"),
    [(failing, "no CUDA graph for 40 tokens, each kernel is launched by itself: operation not permitted"),
     (wrong, "the CUDA graph for 40 tokens is off by 1.0e-01 and is not used"),
     (lambda forward: lambda: forward() * torch.nan, "is off by nan and is not used")],
)  # fmt: skip
def test_a_graph_that_fails_is_not_used(
    network: Network, capture: Callable[[Run], Run], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = PackedEngine(SMALL, "cpu")
    engine.graphs = Graphs(network, CPU, capture, [Layout(40, 5)])
    texts = texts_of(20, 10)
    with caplog.at_level(logging.WARNING):
        assert errors(engine.embed(texts), PackedEngine(SMALL, "cpu").embed(texts))[0] <= 1e-6
    assert words in caplog.text
    assert engine.graphs.bucket(30, 2) is None


def test_what_can_be_captured() -> None:
    assert capturable(FUSED) and capturable(replace(FUSED, geglu=PLAIN.geglu))
    for name in ("attention", "segment_mean"):  # PyTorch's own read lengths on the host
        assert not capturable(replace(FUSED, **{name: getattr(PLAIN, name)}))
    assert PackedEngine(SMALL, "cpu").graphs is None


def test_the_static_segments_know_no_lengths() -> None:
    seen: list[Any] = []

    def network(ids: Tensor, segments: Segments) -> Tensor:
        seen.append(segments)
        return torch.ones(4, 768)

    graphs = Graphs(network, CPU, as_it_is, [Layout(32, 4)])
    graphs.prepare()
    assert seen[0].lengths == () and seen[0].longest == 32
