"""That a batch in static buffers gets the vectors that it gets by itself, and which graphs are captured when.

Here a replay is the forward pass over the same buffers; tests/engine/test_gpu.py has captured graphs.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.checkpoint import load_network
from engine.configs import read_architecture
from engine.contract import Ranges
from engine.graphs import Graphs, Run, buckets, capturable
from engine.kernels import FUSED, PLAIN
from engine.model import FLOAT32, Network
from engine.packed import GPU_BATCH_TOKENS, PackedEngine
from engine.packing import Layout, Segments, layout_of
from tests.support.captures import as_it_is, ones
from tests.support.vectors import errors, random_ids, unit
from weights import SMALL

CPU = torch.device("cpu")
SMALL_BUCKETS = [Layout(600, 20, 20, 600), Layout(40, 5, 5, 40), Layout(100, 16, 12, 30), Layout(100, 8, 8, 100)]
NAN_ID = 5000

pytestmark = pytest.mark.usefixtures("flash_on_cpu")


@pytest.fixture
def any_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a batch take any bucket that holds it: SMALL_BUCKETS are far apart."""
    monkeypatch.setattr("engine.graphs.MOST_PADDED", np.inf)


class Recorder:
    """Captures a pass as it is; `replayed` has the number of rows of each replay."""

    def __init__(self) -> None:
        self.replayed: list[int] = []

    def capture(self, forward: Run) -> Run:
        def run() -> Tensor:
            out = forward()
            self.replayed.append(len(out))
            return out

        return run


@pytest.fixture
def network() -> Network:
    """The small checkpoint as a GPU runs it: its attention reads lengths from cu_seqlens alone. One token is NaN."""
    network = load_network(SMALL, read_architecture(SMALL), FLOAT32, CPU)
    network.kernels = replace(PLAIN, attention=FUSED.attention)
    table = network.embedding.table.clone()
    table[NAN_ID] = torch.nan
    network.embedding.table.data = table
    return network


def texts_of(*lengths: int) -> list[list[int]]:
    return [[6 if i == NAN_ID else i for i in random_ids(length)] for length in lengths]


@pytest.mark.usefixtures("any_padding")
def test_the_smallest_bucket_that_fits() -> None:
    graphs = Graphs(ones, CPU, as_it_is, SMALL_BUCKETS)
    assert graphs.buckets == [SMALL_BUCKETS[i] for i in (1, 2, 3, 0)]
    sizes = [(40,), (8,) * 5, (8,) * 6, (31, 9, 1), (15,) * 6, (7,) * 14, (1,) * 16, (101,), (50, 5, 45), (600,)]
    chosen = [graphs.bucket(layout_of(lengths, None)) for lengths in sizes]
    found = [(bucket.tokens, bucket.longest) if bucket else None for bucket in chosen]
    assert found == [
        (40, 40), (40, 40), (100, 30), (100, 100), (100, 30), (600, 600), (600, 600), (600, 600), (100, 100), (600, 600)
    ]  # fmt: skip
    assert graphs.bucket(layout_of([601], None)) is None and graphs.bucket(layout_of([9] * 21, None)) is None


@pytest.mark.usefixtures("any_padding")
def test_batches_that_shrink_and_grow_in_poisoned_buffers(network: Network) -> None:
    plain = PackedEngine(SMALL, "cpu")
    with torch.inference_mode():
        graphs = Graphs(network, CPU, as_it_is, SMALL_BUCKETS)
        for lengths in [(300, 290, 10), (30,), (5, 4, 3), (90, 5), (600,), (2,), (40,), (7, 33), (1, 1, 1, 37)]:
            texts = texts_of(*lengths)
            bucket = graphs.bucket(layout_of(lengths, None))
            assert bucket
            poisoned = graphs.run(bucket, bucket.pack([[NAN_ID] * bucket.longest]))  # what this batch overwrites
            assert poisoned[0].isnan().all()
            host = torch.full((bucket.size,), NAN_ID, dtype=torch.int32)
            bucket.fill(host.numpy(), texts)
            replayed = graphs.run(bucket, host)
            assert replayed.shape == (bucket.vectors, 768)
            vectors, expected = replayed[: len(texts)].numpy(), plain.embed(texts)
            assert np.isfinite(vectors).all() and errors(vectors, expected)[0] <= 1e-6, lengths
            assert np.abs(unit(vectors) - unit(expected)).max() <= 1e-6


def test_a_poisoned_text_stays_alone_and_its_graph_in_use(network: Network) -> None:
    engine, texts = PackedEngine(SMALL, "cpu"), texts_of(9, 12, 4)
    engine.network, recorder = network, Recorder()
    with torch.inference_mode():
        engine.graphs = Graphs(network, CPU, recorder.capture, [Layout(40, 5, 5, 40)])
    clean = engine.embed(texts)
    texts[1][3] = NAN_ID
    poisoned = engine.embed(texts)
    assert np.isnan(poisoned[1]).all() and np.array_equal(poisoned[[0, 2]], clean[[0, 2]])
    recorder.replayed.clear()
    assert np.array_equal(engine.embed(texts_of(9, 12, 4)), clean) and recorder.replayed == [5]


RANGES = [[(0, 20), (3, 7), (5, 20)], [(1, 9)]]


@pytest.mark.usefixtures("any_padding")
def test_the_engine_replays_what_a_bucket_holds_ranges_too(network: Network) -> None:
    plain, engine, recorder = PackedEngine(SMALL, "cpu"), PackedEngine(SMALL, "cpu"), Recorder()
    with torch.inference_mode():
        engine.graphs = Graphs(network, CPU, recorder.capture, SMALL_BUCKETS)
    cases: list[tuple[tuple[int, ...], Ranges | None, list[int]]] = [
        ((20, 10), None, [5]), ((700,), None, []), ((500, 50), None, [20]), ((20, 10), RANGES, [5]),
        ((20, 10), [RANGES[0] * 2, RANGES[1]], [12]), ((20, 10), [RANGES[0] * 7, RANGES[1]], []),
    ]  # fmt: skip
    for lengths, ranges, rows in cases:
        recorder.replayed.clear()
        texts = texts_of(*lengths)
        assert errors(engine.embed(texts, ranges), plain.embed(texts, ranges))[0] <= 1e-6
        assert recorder.replayed == rows


def test_all_are_captured_at_once_and_the_largest_first() -> None:
    recorder = Recorder()
    graphs = Graphs(ones, CPU, recorder.capture, SMALL_BUCKETS)
    assert recorder.replayed == [20, 8, 12, 5]  # for the comparison
    graphs.run(SMALL_BUCKETS[0], SMALL_BUCKETS[0].pack(texts_of(300)))
    assert recorder.replayed == [20, 8, 12, 5, 20]


def test_a_start_takes_no_more_passes_than_with_fewer_graphs() -> None:
    """It took 129 for 43: here each takes one launched kernel by kernel, and the replay stands for the captured one."""
    passes: list[int] = []

    def counting(ids: Tensor, segments: Segments) -> Tensor:
        passes.append(len(ids))
        return ones(ids, segments)

    layouts = buckets(GPU_BATCH_TOKENS)
    Graphs(counting, CPU, as_it_is, layouts)
    assert len(passes) == 2 * len(layouts) == 122


@pytest.mark.usefixtures("any_padding")
def test_bulk_work_gets_its_graphs_at_first_use() -> None:
    recorder = Recorder()
    graphs = Graphs(ones, CPU, recorder.capture, SMALL_BUCKETS[1:], at_first_use=SMALL_BUCKETS[:1])
    assert recorder.replayed == [8, 12, 5] and len(graphs.buckets) == 4
    for _ in range(2):
        assert graphs.bucket(layout_of([300, 200], None)) == SMALL_BUCKETS[0]
        assert recorder.replayed == [8, 12, 5, 20]


@pytest.mark.usefixtures("any_padding")
def test_a_graph_that_fails_at_first_use_is_tried_once(caplog: pytest.LogCaptureFixture) -> None:
    graphs = Graphs(ones, CPU, failing, [], at_first_use=SMALL_BUCKETS[:1])
    for _ in range(2):
        assert graphs.bucket(layout_of([300, 200], None)) is None and graphs.buckets == []
    assert caplog.text.count("no CUDA graph for 600 tokens") == 1


def test_an_engine_captures_what_online_batches_need(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """And embeds in larger passes, whose graphs are captured when they come."""
    recorder, engine = Recorder(), PackedEngine(SMALL, "cpu")
    monkeypatch.setattr("engine.packed.cuda_capture", lambda: recorder.capture)
    engine.network, engine.batch_tokens, engine.bulk = network, 64, 2
    engine.graphs = engine._prepared_graphs()
    assert engine.graphs.buckets == buckets(128) and len(recorder.replayed) == len(buckets(64)) == 3
    texts = texts_of(60, 68)
    plain = PackedEngine(SMALL, "cpu").embed(texts)
    for replays in ([16, 16], [16]):
        recorder.replayed.clear()
        assert errors(engine.embed(texts), plain)[0] <= 1e-6 and recorder.replayed == replays


@torch.inference_mode()
def test_the_longest_texts_get_their_graphs_at_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """So a start takes no longer where the model reads 8,192 tokens."""
    recorder, engine = Recorder(), PackedEngine(SMALL, "cpu")
    monkeypatch.setattr("engine.packed.cuda_capture", lambda: recorder.capture)
    monkeypatch.setattr(engine, "network", ones)
    engine.batch_tokens, engine.bulk, engine.tokenizer.max_tokens = 4_096, 1, 8_192
    graphs = engine._prepared_graphs()
    assert graphs.buckets == buckets(4_096, 8_192) and len(recorder.replayed) == len(buckets(4_096))
    for _ in range(2):
        bucket = graphs.bucket(layout_of([3_500], None))
        assert bucket and bucket.longest == 4_096 and len(recorder.replayed) == len(buckets(4_096)) + 1


@pytest.mark.parametrize("bucket", buckets(768), ids=lambda bucket: f"{bucket.tokens}-{bucket.longest}")
def test_every_bucket_of_few_tokens_full_to_the_last_text(network: Network, bucket: Layout) -> None:
    """With the longest texts, with as many as there is room for, and with one."""
    longest = [bucket.longest] * (bucket.tokens // bucket.longest)
    many = [bucket.tokens // bucket.texts] * bucket.texts
    many[0] += bucket.tokens - sum(many)
    plain = PackedEngine(SMALL, "cpu")
    with torch.inference_mode():
        graphs = Graphs(network, CPU, as_it_is, [bucket])
        for lengths in (longest, many, longest[:1]):
            assert bucket.holds(layout_of(lengths, None)), lengths
            texts = texts_of(*lengths)
            vectors = graphs.run(bucket, bucket.pack(texts))[: len(texts)].numpy()
            assert errors(vectors, plain.embed(texts))[0] <= 1e-6, lengths


def failing(forward: Run) -> Run:
    raise RuntimeError("operation not permitted when stream is capturing")


def wrong(forward: Run) -> Run:
    return lambda: forward() * 1.1


def frozen(forward: Run) -> Run:
    """What a capture is that has read a length on the host: the same whatever the buffers hold."""
    out = forward()
    return lambda: out


@pytest.mark.parametrize(
    ("capture", "words"),
    [(failing, "no CUDA graph for 40 tokens, each kernel is launched by itself: operation not permitted"),
     (wrong, "the CUDA graph for 40 tokens is off by 1.0e-01 and is not used"),
     (frozen, "the CUDA graph for 40 tokens is off by "),
     (lambda forward: lambda: forward() * torch.nan, "is off by nan and is not used")],
)  # fmt: skip
def test_a_graph_that_fails_is_not_used(
    network: Network, capture: Callable[[Run], Run], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine = PackedEngine(SMALL, "cpu")
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        engine.graphs = Graphs(network, CPU, capture, [Layout(40, 5, 5, 40)])
    texts = texts_of(20, 10)
    assert words in caplog.text and engine.graphs.buckets == []
    assert errors(engine.embed(texts), PackedEngine(SMALL, "cpu").embed(texts))[0] <= 1e-6


def test_a_text_that_overflows_says_nothing_about_a_graph(caplog: pytest.LogCaptureFixture) -> None:
    """One of the two that are compared does, in float16."""

    def network(ids: Tensor, segments: Segments) -> Tensor:
        vectors = ids[segments.starts.int()][:, None] * torch.ones(768)
        vectors[0] = torch.inf
        return vectors

    assert len(Graphs(network, CPU, as_it_is, SMALL_BUCKETS).buckets) == 4 and not caplog.records


def test_what_can_be_captured() -> None:
    assert capturable(FUSED) and capturable(replace(FUSED, geglu=PLAIN.geglu))
    for name in ("attention", "segment_mean"):  # PyTorch's own read lengths on the host
        assert not capturable(replace(FUSED, **{name: getattr(PLAIN, name)}))
    assert PackedEngine(SMALL, "cpu").graphs is None


def test_the_static_segments_know_no_lengths() -> None:
    seen: list[Any] = []

    def network(ids: Tensor, segments: Segments) -> Tensor:
        seen.append(segments)
        return ones(ids, segments)

    Graphs(network, CPU, as_it_is, [Layout(32, 4, 4, 16)])
    assert all(segments.lengths == segments.spans == () and segments.longest == 16 for segments in seen)
