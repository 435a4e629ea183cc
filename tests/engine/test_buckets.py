"""Which graph a batch gets, and how much of the graph it leaves empty."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from batching.request import Job
from batching.scheduler import Scheduler
from engine.contract import split_by_tokens
from engine.graphs import Graphs, buckets
from engine.packed import GPU_BATCH_TOKENS
from engine.packing import Layout, layout_of
from lab.benchmarks.texts import mixed_token_counts
from tests.support.captures import as_it_is, ones

CPU = torch.device("cpu")


@pytest.mark.parametrize("tokens", [32_768, 16_384, 4_096])
def test_every_full_batch_and_every_single_text_is_one_launch(tokens: int) -> None:
    """A batch has texts of like length, as the scheduler forms them, and is full as far as whole texts can fill it."""
    graphs = Graphs(ones, CPU, as_it_is, buckets(tokens))
    for length in (2, 31, 32, 33, 64, 500, 2048):
        bucket = graphs.bucket(layout_of([length], None))
        assert bucket and bucket.tokens < max(33, 1.6 * length)
    generator = np.random.default_rng(0)
    for longest in (16, 40, 128, 300, 600, 1200, 2048):
        lengths: list[int] = []
        while sum(lengths) < tokens - longest:
            lengths.append(int(generator.integers(longest // 2 + 1, longest + 1)))
        bucket = graphs.bucket(layout_of(lengths, None))
        assert bucket and bucket.tokens <= max(1.5 * sum(lengths), tokens)
    assert graphs.bucket(layout_of([2049], None)) is None


def test_longer_texts_have_graphs_where_the_model_reads_them() -> None:
    """And the layouts for texts of up to 2,048 tokens are the same."""
    graphs = Graphs(ones, CPU, as_it_is, buckets(32_768, 8_192))
    for lengths in ([2_049], [3_000], [8_192], [5_000, 30, 30], [4_000] * 4, [8_192] * 4):
        bucket = graphs.bucket(layout_of(lengths, None))
        assert bucket and bucket.tokens < 1.6 * sum(lengths)
    assert graphs.bucket(layout_of([8_193], None)) is None
    assert [each for each in graphs.buckets if each.longest <= 2_048] == buckets(32_768) == buckets(32_768, 512)
    assert len(graphs.buckets) - len(buckets(32_768)) == 7


def test_no_batch_is_more_than_a_third_padding() -> None:
    graphs = Graphs(ones, CPU, as_it_is, buckets(16_384))
    for tokens in (*range(33, 1_000, 7), *range(1_000, 16_384, 311)):
        bucket = graphs.bucket(layout_of([tokens // 9] * 9, None))
        assert bucket and bucket.tokens * 2 <= tokens // 9 * 9 * 3
    one_long_and_many_short = [2_000, *[10] * 100]
    assert any(bucket.holds(layout_of(one_long_and_many_short[:25], None)) for bucket in graphs.buckets)
    assert graphs.bucket(layout_of(one_long_and_many_short[:25], None)) is None
    assert graphs.bucket(layout_of(one_long_and_many_short, None)) is None
    smallest = graphs.bucket(layout_of([2], None))
    assert smallest and smallest.tokens == 32


class Figures(NamedTuple):
    """What batches take on average: those in graphs the last five, of which blocks are FlashAttention's in a layer."""

    in_graphs: float
    tokens: float
    texts: float
    padding: float
    blocks: float
    vectors: float


def figures_of(name: str, batches: list[list[int]], budget: int) -> Figures:
    """Choose graphs for batches of texts of these lengths, and print their figures."""
    graphs = Graphs(ones, CPU, as_it_is, buckets(budget))
    layouts = [layout_of(batch, None) for batch in batches]
    pairs = [(layout, bucket) for layout in layouts if (bucket := graphs.bucket(layout))]
    figures = Figures(len(pairs) / len(layouts), *np.mean([
        (layout.tokens, layout.texts, bucket.tokens - layout.tokens, 3 * blocks_of(bucket), bucket.vectors)
        for layout, bucket in pairs
    ], axis=0).tolist())  # fmt: skip
    in_words = ", ".join(f"{value:,.0f} {of}" for of, value in list(figures._asdict().items())[1:])
    print(f"{name}: {len(batches)} batches, {figures.in_graphs:.1%} in graphs, with {in_words}")
    return figures


def blocks_of(layout: Layout) -> int:
    """How many blocks of threads FlashAttention starts for each head: one for every 64 tokens of the longest text."""
    return layout.texts * -(-layout.longest // 64)


def test_few_blocks_of_attention_are_started_for_nothing() -> None:
    for bucket in buckets(32_768):
        share = 8 if bucket.longest <= 64 else 16
        assert blocks_of(bucket) <= max(32, min(bucket.tokens // 4, 640), bucket.tokens // share)
        assert bucket.texts * bucket.longest >= 4 * bucket.tokens
        assert bucket.vectors == max(bucket.texts, bucket.tokens // 64)


@pytest.mark.parametrize("budget", [16_384, 32_768])
def test_full_batches_of_mixed_texts_run_in_tight_graphs(budget: int) -> None:
    """Room for sixteen times the longest would be 12,200 blocks and 1,260 vectors of 16,384 tokens in 178 texts."""
    lengths = mixed_token_counts(32_000, np.random.default_rng(0))
    batches = [[lengths[i] for i in batch] for batch in split_by_tokens(lengths, budget)]
    figures = figures_of(f"{budget:,} tokens", batches, budget)
    assert figures.in_graphs == 1 and figures.padding < budget / 50
    assert figures.blocks < budget / 4 and figures.vectors < budget / 20


def test_nearly_every_batch_that_the_scheduler_forms_has_a_graph() -> None:
    """Of mixed texts, half of them below 66 tokens: where many wait, and where few do."""
    generator = np.random.default_rng(0)
    for waiting, rounds, share in ((2_000, 5, 1.0), (60, 100, 0.95), (30, 100, 0.95), (5, 100, 0.95)):
        batches: list[list[int]] = []
        for _ in range(rounds):
            scheduler = Scheduler()
            for length in mixed_token_counts(waiting, generator):
                scheduler.add([Job([0] * length, owners={Any: [0]})])  # type: ignore[dict-item]
            while batch := scheduler.take(GPU_BATCH_TOKENS, waiting):
                batches.append([len(job.token_ids) for job in batch])
        figures = figures_of(f"{waiting} texts wait", batches, GPU_BATCH_TOKENS)
        assert figures.in_graphs >= share and figures.blocks < 3_500


def test_texts_of_a_question_each_have_a_graph() -> None:
    """Some clients send a short text each: as many texts as a batch may have that costs little."""
    generator = np.random.default_rng(0)
    batches = [generator.integers(9, 30, n).tolist() for n in (1, 2, 3, 5, 8, 13, 20, 32, 50, 64, 100, 200, 400, 800)]
    assert figures_of("questions", batches, GPU_BATCH_TOKENS).in_graphs == 1


EDGES: list[tuple[list[int], tuple[int, int] | None]] = [
    ([2_048], (2_048, 2_048)), ([2_049], None), ([8] * 500, (4_096, 64)), ([8] * 2_048, (16_384, 64)),
    ([8] * 2_049, None), ([512] * 32, (16_384, 512)), ([512] * 33, None), ([512] * 43, (32_768, 512)),
    # 2,048 tokens have room for 16 texts if the longest has more than 512, and 16,384 for 32 if it has more than 1,024.
    # A token less, and it needs a text of padding.
    ([1_073, *[65] * 15], (2_048, 2_048)), ([1_072, *[65] * 15], None), ([1_088, *[60] * 16], (3_072, 2_048)),
    ([1_039, *[495] * 31], (16_384, 2_048)), ([1_038, *[495] * 31], None), ([1_056, *[479] * 32], None),
]  # fmt: skip


@pytest.mark.parametrize(("lengths", "expected"), EDGES)
def test_what_just_fits(lengths: list[int], expected: tuple[int, int] | None) -> None:
    bucket = Graphs(ones, CPU, as_it_is, buckets(32_768)).bucket(layout_of(lengths, None))
    assert (bucket and (bucket.tokens, bucket.longest)) == expected
