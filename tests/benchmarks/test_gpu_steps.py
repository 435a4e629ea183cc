"""The measurements of a GPU's check, one by one, where parts of them fail."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_page, gpu_speed, gpu_steps
from benchmarks.gpu_engines import VARIANTS
from benchmarks.gpu_parts import SMOKE, Step, read_json, write
from benchmarks.gpu_steps import MEASURES
from weights import SMALL

NAMES = list(VARIANTS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Two wait for each other where other programs run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def measure(name: str, out: Path, checkpoint: Path = SMALL, **workload: Any) -> tuple[dict[str, Any], str]:
    """The figures that a step leaves on disk, and its page."""
    step = Step(checkpoint, out / f"{name}.json", replace(SMOKE, **workload))
    MEASURES[name](step)
    figures = read_json(step.out)
    page = gpu_page.markdown({"steps": {name: {"seconds": 1, "fault": "", "figures": figures}}})
    assert "Cannot be shown" not in page
    return figures, page


def no_reference(*_: object) -> Callable[..., np.ndarray]:
    raise ImportError("no sentence-transformers here")


@pytest.fixture
def broken_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "bfloat16", lambda: {"device": "nowhere"})


@pytest.mark.usefixtures("broken_bfloat16")
def test_parity_without_sentence_transformers_or_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_steps, "load_reference", no_reference)
    figures, page = measure("parity", tmp_path)
    assert list(figures["faults"]) == [
        "vectors, sentence-transformers, float32", "vectors, sentence-transformers, bfloat16", "vectors, bfloat16"
    ]  # fmt: skip
    rows = figures[f"1 - cosine, median / worst, against {gpu_steps.PLAIN_FLOAT32}"]
    assert {name.rpartition(",")[0] for name in rows} == {gpu_steps.PLAIN_FLOAT32, *NAMES} - {"bfloat16"}
    assert 0 <= rows["as served, together"]["3-20 tokens"]["worst"] < 1e-6
    assert "no sentence-transformers here" in page and "| as served, alone |" in page


@pytest.mark.usefixtures("broken_bfloat16")
def test_speed_without_sentence_transformers_or_a_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_speed, "load_reference", no_reference)
    figures, page = measure("speed", tmp_path)
    assert list(figures["faults"]) == ["load, sentence-transformers", "load, bfloat16"]
    assert list(figures["throughput"]) == [
        "as served", "as served, token ids made beforehand", "without graphs", "without fused kernels"
    ]  # fmt: skip
    assert all(row["tokens/s"] > 0 and row["texts"] == SMOKE.texts for row in figures["throughput"].values())
    assert set(figures["latency of one text"]["without graphs"]["16 tokens"]) == {"p50 ms", "p99 ms"}
    assert "vs sentence-transformers" not in page and "speed: load, bfloat16 failed:" in page


def test_speed_without_the_engine_as_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "as served", lambda: {"device": "nowhere"})
    monkeypatch.setattr(gpu_speed, "load_reference", no_reference)
    figures, _ = measure("speed", tmp_path)
    assert list(figures["throughput"]) == NAMES[1:] and "nowhere" in figures["faults"]["load, as served"]


def test_a_length_that_fails_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_speed, "load_reference", no_reference)
    for variant in NAMES[1:]:
        monkeypatch.delitem(VARIANTS, variant)
    figures, _ = measure("speed", tmp_path, lengths=(0, 16))
    assert "ZeroDivisionError" in figures["faults"]["throughput by length of the texts, 0 tokens"]
    assert list(figures["throughput by length of the texts"]) == ["16 tokens"]


def test_ceilings_of_which_some_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures, page = measure("ceilings", tmp_path, copied_bytes=-1)
    assert list(figures["faults"]) == ["copies on the device, read and written"] and "| GB/s |" not in page
    assert len(figures["matmuls"]) == 12 and figures["floor"]["as served"]["TFLOP/s"] > 0
    assert all(row["of the floor"] > 0 for row in figures["passes by budget"].values())
    monkeypatch.setitem(VARIANTS, "as served", lambda: {"device": "nowhere"})
    figures, page = measure("ceilings", tmp_path, matmul_rows=-1)
    assert set(figures) == {"faults", "copies on the device"} and len(figures["faults"]) == 13


def test_kernels_and_load(tmp_path: Path) -> None:
    figures, _ = measure("kernels", tmp_path)
    row = figures["time by kind of work"]["mixed texts"]
    kinds = {name: row[f"{name} ms"] for name in ("matmul", "attention", "elementwise", "copies", "host")}
    assert sum(kinds.values()) == pytest.approx(row["wall ms"], rel=0.05) and min(kinds["matmul"], kinds["host"]) > 0
    kernels = figures["kernels, single texts of 32 tokens"]
    assert len(kernels) <= 25 and 0.5 < sum(kernel["share"] for kernel in kernels.values()) < 1.001
    (rows,) = measure("load", tmp_path)[0].values()
    alone, beside = rows.values()
    assert 0 < alone["p50 ms"] <= alone["p99 ms"] and alone["requests/s"] > 0
    assert beside["tokens/s"] > 0 and beside["bulk request ms"] > 0


def test_setup_shows_what_its_process_printed(tmp_path: Path) -> None:
    figures, page = measure("setup", tmp_path, checkpoint=tmp_path)
    assert (
        len(figures["faults"]) == 2
        and f"{tmp_path}/" in figures["faults"]["process start to first vector, nothing compiled yet"]
    )
    assert "TokenizerError" in page


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


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write(path, "\udcff")
    assert path.read_text() == r"\udcff" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "x.json.unfinished").mkdir()  # stands for a disk that is full
    with pytest.raises(IsADirectoryError):
        write(path, "{}")
    assert path.read_text() == r"\udcff"
