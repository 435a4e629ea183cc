"""The packed engine against sentence-transformers, and against itself with other texts. Norms are compared too."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import engine
from engine.contract import DeviceError, split_by_tokens
from engine.packed import PackedEngine, affordable_tokens
from engine.packing import Segments
from tasks import PROMPTS
from tests.support.checkpoints import on_small
from tests.support.vectors import errors, random_ids, unit
from weights import SMALL

if TYPE_CHECKING:
    from engine.reference import ReferenceEngine

LENGTHS = [*range(1, 21), 255, 256, 257, 258, 511, 512, 513, 514, 515, 1023, 1024, 1025, 2047, 2048]
FEWER_LENGTHS = [1, 2, 3, 9, 20, 256, 257, 258, 513]  # of the official width, where they take ten times as long
COSINE, NORM = 1e-6, 1e-5


@pytest.fixture(scope="module")
def small_packed(small: Path) -> PackedEngine:
    return PackedEngine(small, "cpu")


@pytest.fixture(scope="module")
def texts(checkpoint: Path) -> list[list[int]]:
    return [random_ids(length) for length in (LENGTHS if checkpoint == SMALL else FEWER_LENGTHS)]


@pytest.fixture(scope="module")
def expected(reference: "ReferenceEngine", texts: list[list[int]]) -> np.ndarray:
    """The reference's vectors, each text by itself: without padding, the plainest there is."""
    return np.concatenate([reference.embed([ids]) for ids in texts])


def check(name: str, vectors: np.ndarray, expected: np.ndarray) -> None:
    cosine, norm = errors(vectors, expected)
    print(f"{name}: 1 - cosine {cosine:.1e}, relative norm error {norm:.1e}, {len(vectors)} texts")
    assert cosine <= COSINE and norm <= NORM


def test_every_length_alone(packed: PackedEngine, texts: list[list[int]], expected: np.ndarray) -> None:
    check("alone", np.concatenate([packed.embed([ids]) for ids in texts]), expected)


def test_every_length_in_one_forward_pass(
    packed: PackedEngine, texts: list[list[int]], expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "batch_tokens", 100_000)
    order = np.random.default_rng(0).permutation(len(texts))
    vectors = packed.embed([texts[i] for i in order])
    assert vectors.dtype == np.float32 and vectors.shape == (len(texts), 768)
    check("in one forward pass", vectors, expected[order])


@on_small
def test_every_task_and_truncation(packed: PackedEngine, reference: "ReferenceEngine") -> None:
    words = ["", "Mars", "Which planet is known as the Red Planet?", "red planet " * 3000, "火星は赤い惑星です。"]
    pairs = [(prompt.replace("{title}", "none"), word) for prompt in PROMPTS.values() for word in words[:2] + words[4:]]
    pairs += [(PROMPTS["retrieval_query"], word) for word in words]
    tokenized = packed.tokenizer.encode([p for p, _ in pairs], [t for _, t in pairs])
    assert sum(text.truncated for text in tokenized) == 1
    ids = [text.ids for text in tokenized]
    check("tasks", packed.embed(ids), reference.embed(ids))


@on_small
def test_neighbours(packed: PackedEngine) -> None:
    text = random_ids(20)
    alone = unit(packed.embed([text]))[0]
    largest = 0.0
    for count in (2, 300):
        others = [random_ids(2 + i * 7 % 23, seed=1 + i) for i in range(count - 1)]
        for place in {0, count // 2, count - 1}:
            batch = [*others[:place], text, *others[place:]]
            largest = max(largest, float(np.abs(unit(packed.embed(batch))[place] - alone).max()))
    print(f"largest difference that neighbours make in a unit vector: {largest:.1e}")
    assert largest <= 1e-6


def test_a_poisoned_neighbour_changes_no_bit(small_packed: PackedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [random_ids(300), random_ids(300, seed=1), random_ids(9)]
    table = small_packed.network.embedding.table.clone()
    table[5000] = torch.nan
    monkeypatch.setattr(small_packed.network.embedding.table, "data", table)
    texts = [[5001 if i == 5000 else i for i in ids] for ids in texts]
    clean = small_packed.embed(texts)
    texts[1] = [*texts[1][:150], 5000, *texts[1][151:]]
    poisoned = small_packed.embed(texts)
    assert np.isnan(poisoned[1]).all()
    assert np.array_equal(poisoned[[0, 2]], clean[[0, 2]])


def test_batches_hold_each_text_once_and_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 700, 200).tolist()
    batches = split_by_tokens(lengths, 500)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) == 1 or sum(lengths[i] for i in batch) <= 500 for batch in batches)
    assert len(batches) < 1.5 * sum(lengths) / 500


def run_out_of_memory(engine: PackedEngine, most_tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let every forward pass beyond `most_tokens` fail as a GPU's does; return the tokens of each pass tried."""
    monkeypatch.setattr("engine.packed.ROUNDED", (1, 1))  # as on a GPU
    forward, tried = engine.network.forward, []

    def limited(token_ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        tried.append(len(token_ids))
        if len(token_ids) > most_tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return forward(token_ids, segments)

    monkeypatch.setattr(engine.network, "forward", limited)
    return tried


def test_batches_have_few_lengths_and_are_padded_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackedEngine(SMALL, "cpu", native=False)
    seen: set[int] = set()
    forward = engine.network.forward

    def noted(token_ids: torch.Tensor, segments: Segments) -> torch.Tensor:
        seen.add(len(token_ids))
        return forward(token_ids, segments)

    monkeypatch.setattr(engine.network, "forward", noted)
    for tokens in (1, 8, 9, 250, 256, 257, 300, 2047, 2048):
        assert engine.embed([random_ids(tokens)]).shape == (1, 768)
    assert seen == {8, 16, 256, 288, 320, 2048}


def test_out_of_memory_halves_the_batch_and_loses_no_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = PackedEngine(SMALL, "cpu", native=False)
    texts = [random_ids(5 + i * 7 % 90, seed=i) for i in range(60)]
    expected = engine.embed(texts)
    tried = run_out_of_memory(engine, 300, monkeypatch)
    with caplog.at_level(logging.WARNING):
        check("out of memory", engine.embed(texts), expected)
    assert engine.batch_tokens <= 300
    first = tried[0]
    assert f"out of memory at {first} tokens: from now on {first // 2} in one pass; CUDA out of memory" in caplog.text
    failures = [tokens for tokens in tried if tokens > 300]
    assert 1 <= len(failures) <= 3  # learnt once, not by every batch anew
    tried.clear()
    check("afterwards", engine.embed(texts), expected)
    assert max(tried) <= 300
    ranges = [[(0, len(ids)), (1, 3)] for ids in texts]
    wait = engine.launch(texts, ranges)
    check("ranges in one launch", wait(), PackedEngine(SMALL, "cpu").embed(texts, ranges))


def test_out_of_memory_in_bulk_leaves_the_budget_of_online_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackedEngine(SMALL, "cpu", native=False)
    texts = [random_ids(40, seed=i) for i in range(50)]
    expected = engine.embed(texts)
    tried = run_out_of_memory(engine, 1_500, monkeypatch)
    engine.bulk = 2
    check("out of memory", engine.embed(texts), expected)
    assert max(tried) == 2_000 and (engine.batch_tokens, engine.bulk) == (1_000, 1)
    tried.clear()
    check("afterwards", engine.embed(texts), expected)
    assert tried == [1_000, 1_000]


def test_out_of_memory_leaves_a_long_text_its_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackedEngine(SMALL, "cpu", native=False)
    texts = [random_ids(200), *(random_ids(30, seed=i) for i in range(1, 12))]
    expected = engine.embed(texts)
    tried = run_out_of_memory(engine, 210, monkeypatch)
    check("one long text", engine.embed(texts), expected)
    assert 200 in tried and engine.batch_tokens < 200


def test_a_text_that_does_not_fit_alone_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackedEngine(SMALL, "cpu", native=False)
    run_out_of_memory(engine, 99, monkeypatch)
    with pytest.raises(DeviceError) as caught:
        engine.embed([random_ids(100)])
    assert str(caught.value).startswith("there is not enough memory for a text of 100 tokens alone; end other programs")
    check("the next text", engine.embed([random_ids(99)]), PackedEngine(SMALL, "cpu").embed([random_ids(99)]))


@pytest.mark.parametrize(
    ("tokens_per_s", "tokens"),
    [(1e9, 16_384), (200_000, 16_384), (163_000, 8_192), (50_000, 4_096), (20_000, 1_024), (100, 1_024)],
)
def test_a_slow_gpu_gets_passes_of_a_tenth_of_a_second(tokens_per_s: float, tokens: int) -> None:
    assert affordable_tokens(1 / tokens_per_s) == tokens


def test_a_pass_is_timed(small_packed: PackedEngine) -> None:
    assert 0 < small_packed._s_per_token() < 1


def test_texts_of_equal_length_share_a_call_of_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counting(q: torch.Tensor, *others: Any, **options: Any) -> torch.Tensor:
        calls.append(len(q))
        return attend(q, *others, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counting)
    lengths = np.random.default_rng(0).permutation([5] * 7 + [9] * 4 + [30] * 3)
    engine = PackedEngine(SMALL, "cpu", native=False)
    engine.embed([random_ids(int(length), seed=i) for i, length in enumerate(lengths)])
    assert calls == [3, 4, 7] * len(engine.network.layers)


def test_the_host_reads_nothing_while_a_pass_is_launched(
    small_packed: PackedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading from a device would wait for the batch that it still computes."""

    def reading(tensor: torch.Tensor) -> None:
        raise AssertionError("waits for the device")

    texts = [random_ids(5), random_ids(300)]
    for name in ("tolist", "item", "__bool__", "__int__", "__float__"):
        monkeypatch.setattr(torch.Tensor, name, reading)
    waits = [small_packed.launch(texts), small_packed.launch(texts, [[(0, 2), (1, 5)], [(3, 9)]])]
    monkeypatch.undo()
    assert [len(wait()) for wait in waits] == [2, 3]


def test_no_texts_no_vectors(small_packed: PackedEngine) -> None:
    assert small_packed.embed([]).shape == (0, 768)


def test_threads_are_left_as_they_were(small_packed: PackedEngine) -> None:
    threads = torch.get_num_threads()
    PackedEngine(SMALL, "cpu").embed([random_ids(5)])
    assert torch.get_num_threads() == threads


CHOICES = [("", "packed"), ("packed", "packed"), ("reference", "sentence-transformers")]


@pytest.mark.parametrize(("name", "description"), CHOICES)
def test_the_environment_chooses_the_engine(name: str, description: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE", name)
    assert engine.load(SMALL).description.startswith(description)


def test_an_unknown_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE", "onnx")
    with pytest.raises(ValueError, match="ENGINE is 'onnx'; set it to packed or reference"):
        engine.load(Path("nowhere"))
