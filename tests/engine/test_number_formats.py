"""Number formats: which one computes, and that a text which float16 cannot hold is computed in float32."""

import asyncio
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import engine
import engine.packed
from batching.batcher import Batcher
from batching.errors import EngineFailed
from engine.contract import Ranges
from engine.kernels import PLAIN
from engine.model import BFLOAT16, FLOAT16, FLOAT32
from engine.packed import PackedEngine
from tests.support.large_activations import ALL_OVERFLOW, SOME_OVERFLOW, with_larger_activations
from tests.support.vectors import errors, random_ids
from weights import SMALL

TEXTS = [random_ids(n) for n in (2, 5, 9, 14, 20, 33, 40, 64, 90, 130, 300)]


@pytest.fixture(scope="module")
def some_overflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_larger_activations(tmp_path_factory.mktemp("some") / "checkpoint", SOME_OVERFLOW)


@pytest.fixture(scope="module")
def all_overflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_larger_activations(tmp_path_factory.mktemp("all") / "checkpoint", ALL_OVERFLOW)


def overflowing(packed: PackedEngine, texts: Sequence[Sequence[int]]) -> list[int]:
    """Return the texts whose vectors the network itself does not keep finite."""
    rows = [packed._start([ids], None)() for ids in texts]
    return [i for i, row in enumerate(rows) if not np.isfinite(row).all()]


RANGES: list[list[tuple[int, int]]] = [[(0, len(ids)), (0, 2), (1, len(ids))] for ids in TEXTS]


@pytest.mark.parametrize("ranges", [None, RANGES], ids=["texts", "ranges"])
def test_a_text_that_float16_cannot_hold_is_computed_in_float32(some_overflow: Path, ranges: Ranges | None) -> None:
    packed, exact = PackedEngine(some_overflow, "cpu", FLOAT16), PackedEngine(some_overflow, "cpu", FLOAT32)
    overflowed = overflowing(packed, TEXTS)
    assert 0 < len(overflowed) < len(TEXTS)
    vectors, expected = packed.embed(TEXTS, ranges), exact.embed(TEXTS, ranges)
    each = len(vectors) // len(TEXTS)
    in_float32 = [row for i in overflowed for row in range(i * each, (i + 1) * each)]
    in_float16 = sorted(set(range(len(vectors))) - set(in_float32))
    print(f"1 - cosine {errors(vectors[in_float16], expected[in_float16])[0]:.1e} in float16, "
          f"{errors(vectors[in_float32], expected[in_float32])[0]:.1e} recomputed")  # fmt: skip
    assert errors(vectors[in_float16], expected[in_float16])[0] <= 1e-5
    assert errors(vectors[in_float32], expected[in_float32])[0] <= 1e-9
    assert packed.recomputed == len(overflowed)


def test_what_is_finite_is_left_as_it_was(some_overflow: Path) -> None:
    packed = PackedEngine(some_overflow, "cpu", FLOAT16)
    overflowed = overflowing(packed, TEXTS)
    raw = packed._start(TEXTS, None)()
    finite = [i for i in range(len(TEXTS)) if i not in overflowed]
    assert np.array_equal(packed.launch(TEXTS)()[finite], raw[finite])


def test_it_is_counted_and_logged_once_a_minute(
    some_overflow: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = PackedEngine(some_overflow, "cpu", FLOAT16)
    texts = [TEXTS[i] for i in overflowing(packed, TEXTS)]
    now = 1000.0
    monkeypatch.setattr("engine.packed.time.monotonic", lambda: now)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for now in (1000.0, 1030.0, 1059.0, 1060.0, 1061.0):  # noqa: B007
            packed.embed(texts)
    n = len(texts)
    assert [record.getMessage().split(" so far")[0] for record in caplog.records] == [
        f"float16 overflowed: {n} texts",
        f"float16 overflowed: {4 * n} texts",
    ]
    assert "DTYPE=bfloat16" in caplog.text and packed.recomputed == 5 * n


def test_weights_that_are_not_finite_stay_so() -> None:
    packed = PackedEngine(SMALL, "cpu", FLOAT16)
    table = packed.network.embedding.table.clone()
    table[5000] = torch.nan
    packed.network.embedding.table.data = table
    vectors = packed.embed([[2, 5000, 1], [2, 600, 1]])
    assert np.isnan(vectors[0]).all() and np.isfinite(vectors[1]).all()


async def answers_of(packed: PackedEngine, texts: list[list[int]]) -> list[object]:
    """Embed the texts as requests of their own that share a batch; return vectors or what was raised."""
    batcher = Batcher(packed, max_waiting_tokens=100_000, cache_bytes=0)
    try:
        return await asyncio.gather(*(batcher.embed([ids]) for ids in texts), return_exceptions=True)
    finally:
        await asyncio.to_thread(batcher.close)


def test_where_float32_cannot_be_loaded_only_that_text_fails(some_overflow: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(some_overflow, tmp_path / "copy"))
    packed = PackedEngine(copy, "cpu", FLOAT16)
    overflowed = overflowing(packed, TEXTS)
    (copy / "3_Dense" / "model.safetensors").unlink()
    answers = asyncio.run(answers_of(packed, TEXTS))
    failed = [i for i, answer in enumerate(answers) if isinstance(answer, EngineFailed)]
    assert failed == overflowed and str(copy / "3_Dense" / "model.safetensors") in str(answers[failed[0]])


def test_other_formats_recompute_nothing(all_overflow: Path) -> None:
    for numbers in (FLOAT32, BFLOAT16):
        packed = PackedEngine(all_overflow, "cpu", numbers)
        assert np.isfinite(packed.embed(TEXTS)).all() and packed.recomputed == 0


def geglu(gate: Tensor, up: Tensor) -> Tensor:
    return PLAIN.geglu(gate, up)


@pytest.mark.fuzz
def test_a_checkpoint_that_float16_cannot_hold_at_all_is_loaded_in_bfloat16(
    all_overflow: Path, some_overflow: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU: auto is float16, and its kernels are compared with PyTorch's."""
    monkeypatch.setattr(engine.packed, "AUTO", {"cpu": FLOAT16})
    monkeypatch.setattr(engine.packed, "candidates", lambda dtype, device: replace(PLAIN, geglu=geglu))
    for directory, chosen in ((SMALL, "float16"), (all_overflow, "bfloat16")):
        packed = PackedEngine(directory, "cpu")
        assert packed.number_format == chosen and packed.network.kernels == replace(PLAIN, geglu=geglu)
        assert f"packed, {chosen}, cpu" in packed.description
    assert "float16 overflows with this checkpoint: computing in bfloat16" in caplog.text
    assert PackedEngine(all_overflow, "cpu", FLOAT16).number_format == "float16"  # asked for


FORMATS = [("", "float32"), ("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype_chooses(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What auto is on a CPU, tests/engine/native says."""
    monkeypatch.setenv("DTYPE", dtype)
    for loaded in (engine.load(SMALL), engine.load(SMALL, "float32")):
        assert loaded.number_format == dtype == engine.number_format(SMALL) and f", {dtype}, cpu" in loaded.description
        dtype = "float32"
        monkeypatch.setenv("DTYPE", dtype)


@pytest.mark.parametrize(("dtype", "chosen"), FORMATS)
def test_dtype_chooses_for_the_reference_too(dtype: str, chosen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from engine.reference import ReferenceEngine  # takes seconds

    monkeypatch.setenv("ENGINE", "reference")
    monkeypatch.setenv("DTYPE", dtype)
    loaded = engine.load(SMALL)
    assert isinstance(loaded, ReferenceEngine) and loaded.number_format == chosen
    assert str(next(loaded._model.parameters()).dtype) == f"torch.{chosen}"


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [("packed", "fp16", "DTYPE is 'fp16'; set it to float32, float16, bfloat16, int8 or auto, or leave it unset"),
     ("reference", "int8", "DTYPE is int8, which ENGINE=reference does not have; use bfloat16, or ENGINE=packed"),
     ("reference", "float16", "DTYPE is float16, in which ENGINE=reference overflows; use bfloat16, or ENGINE=packed")],
)  # fmt: skip
def test_another_dtype_is_refused(name: str, dtype: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINE", name)
    monkeypatch.setenv("DTYPE", dtype)
    with pytest.raises(ValueError, match=words):
        engine.load(SMALL)


def test_16_bit_products_are_added_up_in_float32() -> None:
    matmul = torch.backends.cuda.matmul
    matmul.allow_fp16_reduced_precision_reduction = matmul.allow_bf16_reduced_precision_reduction = True
    PackedEngine(SMALL, "cpu")
    assert not matmul.allow_fp16_reduced_precision_reduction and not matmul.allow_bf16_reduced_precision_reduction
