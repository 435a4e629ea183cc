"""The measurements of a GPU's check, one by one, where parts of them fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.packed import PackedEngine
from lab.benchmarks import gpu_figures, gpu_steps
from lab.benchmarks.gpu_steps import SMOKE, Step, mixed_sample
from lab.report import read_json, write, write_json
from tests.support.gpu_check import MEASURES, measure
from weights import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")


def no_reference(*_: object) -> Callable[..., np.ndarray]:
    raise ImportError("no sentence-transformers here")


def broken_engine(*_: object, **__: object) -> PackedEngine:
    raise RuntimeError("no engine here")


def test_speed_without_sentence_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "load_reference", no_reference)
    figures, page = measure("speed", tmp_path)
    assert list(figures["faults"]) == ["load, sentence-transformers"]
    rows = figures["as served, by length"]
    assert list(rows) == ["mixed texts", "16 tokens"] and rows["mixed texts"]["texts"] == SMOKE.texts
    assert all(row["tokens/s"] > 0 and 0 < row["p50 ms"] <= row["p99 ms"] for row in rows.values())
    assert "vs sentence-transformers" not in page and "speed: load, sentence-transformers failed:" in page


def test_a_length_that_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails_at_16(stream: Callable[..., int], texts: gpu_steps.Sample) -> dict[str, float]:
        assert texts.size["tokens"] != 16 * len(texts.texts), "no memory"
        return throughput(stream, texts)

    throughput = gpu_steps.throughput
    monkeypatch.setattr(gpu_steps, "throughput", fails_at_16)
    monkeypatch.setattr(gpu_steps, "PackedEngine", broken_engine)
    figures, page = measure("speed", tmp_path, lengths=(16, 24))
    assert list(figures["faults"]) == ["load, as served", "sentence-transformers, by length, 16 tokens"]
    assert list(figures["sentence-transformers, by length"]) == ["mixed texts", "24 tokens"] and "no memory" in page


def test_a_stream_has_full_batches_and_is_never_drained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From texts, that come in parts, and from token ids the batches are the same; only the last is waited for."""
    monkeypatch.setattr(gpu_steps, "TEXTS_AT_ONCE", 64)
    engine, texts, budget = PackedEngine(SMALL), mixed_sample(SMALL, 512), 2_048
    engine.batch_tokens, engine.batches_in_flight = budget, 2
    batches, launched, waiting = list(texts.batches(budget)), [], []
    tokens = [sum(map(len, batch)) for batch in batches]
    waits = sum(map(len, texts.token_ids[:128]))

    def launch(batch: list[Any]) -> Callable[[], None]:
        launched.append([list(ids) for ids in batch])
        waiting.append(len(launched))

        def wait() -> None:
            assert waiting.pop(0) and (waiting or len(launched) == len(batches))

        return wait

    monkeypatch.setattr(engine, "launch", launch)
    assert gpu_steps.embed_stream(engine, texts) == sum(tokens)
    assert launched == [[list(ids) for ids in batch] for batch in batches] and not waiting
    assert max(tokens) <= budget and np.mean(tokens) > 0.75 * budget
    assert abs(sum(tokens) - texts.size["tokens"]) < budget  # as many as came, beside those that waited
    assert waits > 4 * budget


def test_ceilings_of_which_some_fail(tmp_path: Path) -> None:
    figures, page = measure("ceilings", tmp_path, copied_bytes=-1)
    assert list(figures["faults"]) == ["copies on the device, read and written"] and "| GB/s |" not in page
    shapes = {name.split(",")[0]: row for name, row in figures["matmuls"].items()}
    assert list(shapes) == ["qkv", "out", "gate and up", "down"] and all(
        min(row.values()) > 0 for row in shapes.values()
    )
    rates = [row["TFLOP/s at 64 rows"] for row in shapes.values()]
    assert min(rates) <= figures[gpu_figures.FLOOR]["as served"]["TFLOP/s"] <= max(rates)
    figures, page = measure("ceilings", tmp_path, matmul_rows=-1)
    assert set(figures) == {"faults", "copies on the device", "a large matmul"} and len(figures["faults"]) == 4


def test_kernels_and_load(tmp_path: Path) -> None:
    figures, _ = measure("kernels", tmp_path)
    row = figures["time by kind of work"]["mixed texts"]
    kinds = {name: row[f"{name} ms"] for name in ("matmul", "attention", "elementwise", "copies", "gaps", "host")}
    assert sum(kinds.values()) == pytest.approx(row["wall ms"], rel=0.05) and min(kinds["matmul"], kinds["host"]) > 0
    kernels = figures["kernels, single texts of 32 tokens"]
    assert len(kernels) <= 25 and 0.5 < sum(kernel["share"] for kernel in kernels.values()) < 1.001
    (rows,) = measure("load", tmp_path)[0].values()
    alone, beside = rows.values()
    assert 0 < alone["p50 ms"] <= alone["p99 ms"] and alone["requests/s"] > 0
    assert beside["bulk tokens/s"] > 0 and beside["requests/s"] > 0


class Killed(BaseException):
    """Ends a step as a signal does: nothing in it catches this."""


@pytest.mark.parametrize("name", [name for name in MEASURES if name != "checkpoint"])
def test_a_step_that_ends_after_any_figure_has_left_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, content: Any) -> None:
        write_json(path, content)
        raise Killed

    monkeypatch.setattr("lab.report.write_json", write)
    with pytest.raises(Killed):
        measure(name, tmp_path)
    (figure,) = read_json(tmp_path / f"{name}.json").values()
    assert figure


def test_a_checkpoint_is_made_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "make", lambda path: path.mkdir())
    figures, page = measure("checkpoint", tmp_path, checkpoint=tmp_path / "new")
    assert (tmp_path / "new").is_dir() and figures["machine"]["cores"] and "torch" in page


def test_a_part_is_on_disk_before_the_next_begins(tmp_path: Path) -> None:
    step = Step(SMALL, tmp_path / "x.json", SMOKE)
    step.part(("a", "b"), lambda: {"ms": 1.0})
    assert step.part(("a", "c", "d"), lambda: read_json(step.out)) == {"a": {"b": {"ms": 1.0}}}
    step.part(("a", "e"), lambda: {"ms": np.int64(5)})
    assert step.part(("a", "f"), lambda: [1, 2][2]) is None
    assert list(read_json(step.out)["a"]) == ["b", "c", "e"] and "IndexError" in read_json(step.out)["faults"]["a, f"]


def test_a_figure_that_cannot_be_written_is_written_with_the_next(tmp_path: Path) -> None:
    step, full = Step(SMALL, tmp_path / "x.json", SMOKE), tmp_path / "x.json.unfinished"
    full.mkdir()
    assert step.part(("a", "b"), lambda: 1) == 1 and not step.out.exists()
    full.rmdir()
    step.part(("a", "c"), lambda: 2)
    assert read_json(step.out) == {"a": {"b": 1, "c": 2}}


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write(path, "\udcff")
    assert path.read_text() == r"\udcff" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "x.json.unfinished").mkdir()  # stands for a disk that is full
    with pytest.raises(IsADirectoryError):
        write(path, "{}")
    assert path.read_text() == r"\udcff"
