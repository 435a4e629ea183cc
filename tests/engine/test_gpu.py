"""What only a GPU can show: the 16-bit formats, FlashAttention and captured graphs against float32 on the CPU.

tests/engine/test_kernels.py runs its kernels on the GPU too where there is one.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine import faster_kernels
from engine.attention import grouped_attention, varlen_attention
from engine.faster_kernels import TRIALS
from engine.graphs import buckets
from engine.kernels import FUSED, MERGED, PLAIN, launching
from engine.model import BFLOAT16, FLOAT16, FLOAT32, NumberFormat
from engine.packed import GPU_BATCH_TOKENS, PackedEngine
from engine.packing import Layout, layout_of
from engine.selection import LENGTHS as COMPARED_LENGTHS
from engine.selection import attention_error, install
from tests.support.large_activations import SOME_OVERFLOW, with_larger_activations
from tests.support.vectors import errors, random_ids, segments_of, unit
from weights import SMALL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch sees none")

NEW_ENOUGH = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
needs_flash_attention = pytest.mark.skipif(not NEW_ENOUGH, reason="needs compute capability 8.0")

LENGTHS = [*range(1, 21), 255, 256, 257, 258, 511, 512, 513, 514, 515, 1023, 1024, 1025, 2047, 2048]
# Between unit vectors of the same text, alone and among other texts.
LARGEST_DIFFERENCE = 1e-3
NAN_ID = 5000


@pytest.fixture(scope="module")
def on_gpu(checkpoint: Path) -> PackedEngine:
    """The engine as it is served."""
    return PackedEngine(checkpoint, "cuda")


@pytest.fixture(scope="module")
def poisoned(random_weights: Path) -> PackedEngine:
    """The engine as it is served, with one token whose embedding is NaN."""
    engine = PackedEngine(random_weights, "cuda")
    with torch.inference_mode():
        engine.network.embedding.table[NAN_ID] = torch.nan
    return engine


@pytest.fixture(scope="module")
def expected(packed: PackedEngine) -> np.ndarray:
    return packed.embed([random_ids(length) for length in LENGTHS])


@pytest.mark.parametrize("numbers", [FLOAT32, FLOAT16, BFLOAT16])
def test_every_length_alone_and_together(checkpoint: Path, expected: np.ndarray, numbers: NumberFormat) -> None:
    """1e-4 is asked of the format that the engine uses; bfloat16 has an eighth of its precision.

    Random weights enlarge rounding errors: there bfloat16 was off 1.4e-2, and sentence-transformers in it 7.7e-2.
    """
    limit = {FLOAT32: 1e-6, FLOAT16: 1e-4, BFLOAT16: 1e-3 if checkpoint == SMALL else 5e-2}[numbers]
    engine = PackedEngine(checkpoint, "cuda", numbers)
    texts = [random_ids(length) for length in LENGTHS]
    alone, _ = errors(np.concatenate([engine.embed([ids]) for ids in texts]), expected)
    together, _ = errors(engine.embed(texts), expected)
    print(f"{engine.description}: 1 - cosine {alone:.1e} alone, {together:.1e} together")
    assert max(alone, together) <= limit


@needs_flash_attention
def test_every_kernel_is_trusted_and_graphs_are_used(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        exact = PackedEngine(checkpoint, "cuda", FLOAT32)
        assert exact.network.kernels == replace(FUSED, attention=PLAIN.attention) and not exact.graphs
        for numbers in (FLOAT16, BFLOAT16):
            engine = PackedEngine(checkpoint, "cuda", numbers)
            assert replace(engine.network.kernels, qkv_attention=None, gate_up=None, few_rows=None) == FUSED
            assert engine.graphs and len(engine.network.dense) == 1
            assert engine.graphs.buckets == buckets(2 * engine.batch_tokens)
            print(f"{engine.description}, {engine.batch_tokens} tokens in a pass")
    assert not caplog.records


@needs_flash_attention
@pytest.mark.parametrize("dependently", [False, True], ids=["alone", "dependent"])
def test_merged_kernels_are_right_and_their_speed_is_kept(
    checkpoint: Path,
    expected: np.ndarray,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    dependently: bool,
) -> None:
    """Whether this GPU uses them or not; in graphs, for every length alone and together.

    A kernel that does not wait for another may be right by chance, so a short text is read a thousand times.
    """
    here = frozenset({torch.cuda.get_device_capability()})
    if dependently and min(here) < (9, 0):
        pytest.skip("only newer GPUs launch a kernel before the last one has ended")
    monkeypatch.setattr(launching, "SHOWN_ON", here if dependently else frozenset())
    for name, trial in TRIALS.items():
        monkeypatch.setitem(faster_kernels.TRIALS, name, trial._replace(shown_on=here))
    engine = PackedEngine(checkpoint, "cuda", kernels=MERGED)
    assert engine.graphs and engine.network.kernels == MERGED
    texts = [random_ids(length) for length in LENGTHS]
    alone, _ = errors(np.concatenate([engine.embed([ids]) for ids in texts]), expected)
    together, _ = errors(engine.embed(texts), expected)
    print(f"{engine.description}: 1 - cosine {alone:.1e} alone, {together:.1e} together")
    assert max(alone, together) <= 1e-4
    short, other = random_ids(16), random_ids(30, seed=1)
    first = engine.embed([short])
    for _ in range(1_000):
        engine.embed([other])
        assert np.array_equal(engine.embed([short]), first)
    with caplog.at_level(logging.INFO):
        assert install(engine.network, MERGED) and engine.network.kernels == MERGED
    assert not caplog.records
    kept = tmp_path / "formats.json"
    chosen = [PackedEngine(checkpoint, "cuda", graphs=False, measured=kept).network.kernels for _ in range(2)]
    ratios = {json.loads(each)[0]: ratio for each, ratio in json.loads(kept.read_text()).items()}
    print(f"how many times as fast a pass is with each merged kernel: {ratios}")
    faster = {name: getattr(MERGED, name) for name, trial in TRIALS.items() if ratios.get(name, 0) >= trial.worth}
    assert chosen == [replace(FUSED, **faster)] * 2


@needs_flash_attention
def test_what_runs_is_a_replay_even_after_a_text_of_nan(
    random_weights: Path, poisoned: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every bucket filled with its longest texts, but for one token; vectors of texts and of ranges."""
    plain, ran = PackedEngine(random_weights, "cuda", graphs=False), []
    assert poisoned.graphs
    for bucket in buckets(2 * poisoned.batch_tokens):
        with torch.inference_mode():
            assert poisoned.graphs.bucket(bucket) == bucket  # captured now, if it is for bulk work
        poisoned.embed([[NAN_ID] * bucket.longest])
    run = poisoned.graphs.run

    def noted(bucket: Layout, host: torch.Tensor) -> torch.Tensor:
        ran.append(bucket)
        return run(bucket, host)

    monkeypatch.setattr(poisoned.graphs, "run", noted)
    monkeypatch.setattr(poisoned.network, "forward", None)
    for bucket in poisoned.graphs.buckets:
        lengths = [bucket.longest] * (bucket.tokens // bucket.longest)
        lengths[0] -= 1
        texts = clean([random_ids(length, seed=i) for i, length in enumerate(lengths)])
        ranges = [[(0, length // 2), (1, length)] for length in lengths]
        for chosen in (None, ranges):
            ran.clear()
            vectors = poisoned.launch(texts, chosen)()
            assert ran == [poisoned.graphs.bucket(layout_of(lengths, chosen))]
            assert errors(vectors, plain.embed(texts, chosen))[0] <= 1e-4


@needs_flash_attention
@pytest.mark.parametrize("numbers", [FLOAT16, BFLOAT16])
def test_attention_by_itself(checkpoint: Path, numbers: NumberFormat) -> None:
    network = PackedEngine(checkpoint, "cuda", numbers, kernels=PLAIN).network
    error = attention_error(varlen_attention, network, COMPARED_LENGTHS)
    print(f"{numbers.dtype}: largest difference {error:.2f} times what rounding explains")
    assert error <= 4


def test_a_text_that_float16_cannot_hold_is_computed_in_float32(tmp_path: Path) -> None:
    directory = with_larger_activations(tmp_path / "checkpoint", SOME_OVERFLOW)
    engine, texts = PackedEngine(directory, "cuda", FLOAT16), [random_ids(length) for length in LENGTHS]
    expected = PackedEngine(directory, "cpu").embed(texts)
    cosine, _ = errors(engine.embed(texts), expected)
    print(f"{engine.recomputed} of {len(texts)} texts overflowed: 1 - cosine {cosine:.1e}")
    assert engine.recomputed and cosine <= 1e-4


def test_a_pass_takes_a_tenth_of_a_second_at_most(on_gpu: PackedEngine) -> None:
    assert on_gpu.batch_tokens in (1_024, 2_048, 4_096, 8_192, GPU_BATCH_TOKENS)
    assert on_gpu._s_per_token() * on_gpu.batch_tokens < 0.2 or on_gpu.batch_tokens == 1_024


@needs_flash_attention
def test_an_attention_without_its_window_is_replaced(checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    network = PackedEngine(checkpoint, "cuda", kernels=PLAIN).network
    with caplog.at_level(logging.WARNING):
        install(
            network, replace(FUSED, attention=lambda q, k, v, s, _, scale: varlen_attention(q, k, v, s, None, scale))
        )
    assert network.kernels == replace(FUSED, attention=PLAIN.attention)
    assert "kernel attention is off by" in caplog.text


def test_neighbours(on_gpu: PackedEngine) -> None:
    text = random_ids(40)
    alone = unit(on_gpu.embed([text]))[0]
    others = [random_ids(2 + i * 7 % 60, seed=1 + i) for i in range(299)]
    rows = [unit(on_gpu.embed([*others[:i], text, *others[i:]]))[i] for i in (0, 150, 299)]
    largest = max(float(np.abs(row - alone).max()) for row in rows)
    print(f"largest difference that neighbours make in a unit vector: {largest:.1e}")
    assert largest < LARGEST_DIFFERENCE


@needs_flash_attention
@pytest.mark.parametrize("window", [None, 256])
def test_both_attentions_agree(window: int | None) -> None:
    device, lengths = torch.device("cuda"), [1500, 600, 258, 257, 17, 17, 1]
    q, k, v = (torch.randn(sum(lengths), heads, 256, device=device, dtype=torch.float16) for heads in (3, 1, 1))
    segments = segments_of(lengths, device)
    flash = varlen_attention(q, k, v, segments, window, 1 / 16)
    exact = grouped_attention(q.float(), k.float(), v.float(), segments, window, 1 / 16)
    assert (flash - exact).abs().max() < 5e-3


def test_a_large_batch_and_a_small_one_agree(checkpoint: Path) -> None:
    engine = PackedEngine(checkpoint, "cuda")
    texts = [random_ids(length) for length in LENGTHS]
    large = engine.embed(texts)
    engine.batch_tokens = 1_000
    assert errors(engine.embed(texts), large)[0] <= 1e-4


@needs_flash_attention
def test_replays_of_lengths_that_shrink_and_grow(random_weights: Path, poisoned: PackedEngine) -> None:
    """Between any two batches, static buffers and the graphs' memory are filled with NaN by a poisoned batch."""
    plain = PackedEngine(random_weights, "cuda", graphs=False)
    assert poisoned.graphs and plain.graphs is None
    for lengths in [(2000,), (3,), (900, 100), (60,), (64,), (8, 8, 8, 8), (1500, 30), (16,), (500, 2, 2), (1, 1)]:
        bucket = poisoned.graphs.bucket(layout_of(lengths, None))
        assert bucket
        poison = [[NAN_ID] * (bucket.longest // 2), [NAN_ID] * (bucket.longest - bucket.longest // 2)]
        assert np.isnan(poisoned.embed(poison)).all()
        texts = clean([random_ids(length, seed=7) for length in lengths])
        vectors, exact = poisoned.embed(texts), plain.embed(texts)
        assert errors(vectors, exact)[0] <= 1e-4
        assert np.abs(unit(vectors) - unit(exact)).max() < LARGEST_DIFFERENCE


def test_ten_thousand_random_batches(poisoned: PackedEngine) -> None:
    """Every vector is what it is alone, whatever it is with; texts of NaN among them, which nothing else sees."""
    generator = np.random.default_rng(0)
    texts = clean([random_ids(int(n), seed=i) for i, n in enumerate(generator.integers(2, 200, 300))])
    texts[0] = [2, NAN_ID, 1]
    alone = np.concatenate([unit(poisoned.embed([ids])) for ids in texts])
    largest = 0.0
    for turn in range(10_000):
        chosen = generator.choice(len(texts), int(generator.integers(1, 60 if turn % 100 == 0 else 6)))
        if turn % 50 == 0:  # seldom, as it is computed again in float32
            chosen[int(generator.integers(len(chosen)))] = 0
        vectors = poisoned.embed([texts[i] for i in chosen])
        is_nan = np.isnan(vectors).any(axis=1)
        assert (is_nan == (chosen == 0)).all(), turn
        if not is_nan.all():
            difference = np.abs(unit(vectors[~is_nan]) - alone[chosen[~is_nan]])
            largest = max(largest, float(difference.max()))
    print(f"largest difference in a unit vector over 10,000 batches: {largest:.1e}")
    assert largest < LARGEST_DIFFERENCE


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Leave torch 400 MB more than it holds."""
    torch.cuda.empty_cache()
    free_and_total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 400e6) / free_and_total[1])
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_out_of_memory_loses_no_text(
    random_weights: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    engine = PackedEngine(random_weights, "cuda")
    texts = [random_ids(100, seed=i) for i in range(2_000)]
    exact = engine.embed(texts)
    request.getfixturevalue("little_memory")
    engine.batch_tokens = 200_000
    with caplog.at_level(logging.WARNING):
        vectors = engine.embed(texts)
    assert "out of memory at 200000 tokens: from now on 100000 in one pass" in caplog.text
    assert engine.batch_tokens < 200_000 and errors(vectors, exact)[0] <= 1e-4


def clean(texts: list[list[int]]) -> list[list[int]]:
    """Return the texts without the poisoned token."""
    return [[6 if i == NAN_ID else i for i in ids] for ids in texts]
