"""The measurements of a GPU's check, one by one, where parts of them fail."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.kernels import FUSED, MERGED, PLAIN, launching, matmuls
from engine.kernels.matmuls import Tile
from engine.packed import PackedEngine
from engine.selection import PIECES
from lab.benchmarks import gpu_ceilings, gpu_matmuls, gpu_report, gpu_steps, gpu_variants
from lab.benchmarks.gpu_report import AGAIN, FROM_IDS, FROM_TEXTS, LASTING, PASS, QUERY, VARIANTS
from lab.benchmarks.gpu_steps import SMOKE, Step, mixed_sample
from lab.report import read_json, write, write_json
from weights import SMALL

MEASURES = gpu_steps.MEASURES | gpu_ceilings.MEASURES | gpu_matmuls.MEASURES | gpu_variants.MEASURES
RATES = (PASS, QUERY, LASTING, FROM_TEXTS, FROM_IDS)


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
    page = gpu_report.markdown({"steps": {name: {"seconds": 1, "fault": "", "figures": figures}}})
    assert "Cannot be shown" not in page
    return figures, page


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
    assert min(rates) <= figures[gpu_report.FLOOR]["as served"]["TFLOP/s"] <= max(rates)
    figures, page = measure("ceilings", tmp_path, matmul_rows=-1)
    assert set(figures) == {"faults", "copies on the device"} and len(figures["faults"]) == 4


def test_matmuls_by_tile_of_which_some_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is measured with its own tile, those of few rows also as they are launched dependently."""
    seen: list[tuple[Tile, bool]] = []

    def multiply(x: Tensor, weight: Tensor, gated: bool = False) -> Tensor:
        how = matmuls.tile_for(len(x), x.device)
        seen.append((how, (9, 0) in launching.SHOWN_ON))
        if how.stages == 4:
            raise RuntimeError("out of resource: shared memory")
        return matmuls.matmul(x, weight, gated)

    monkeypatch.setattr(gpu_matmuls, "matmul_fused", multiply)
    monkeypatch.setattr(gpu_matmuls, "ON_GPU", True)
    monkeypatch.setattr(gpu_matmuls, "by_torch", matmuls.matmul)
    monkeypatch.setattr(gpu_ceilings, "WEIGHTS", 1)
    figures, page = measure("matmuls", tmp_path)
    assert list(dict.fromkeys(seen)) == [(tile, False) for tile in gpu_matmuls.MANY_ROWS] + [
        (tile, dependently) for tile in gpu_matmuls.FEW_TILES for dependently in (False, True)
    ]
    many, few = figures["gate_up with GeGLU"], figures["matmuls of few rows"]
    assert len(many) == 9 - len(figures["faults"]) == 7 and len(few) == 9
    assert all(row["us at 64 rows"] > 0 and row["error"] < 1e-6 for row in many.values())
    assert all(list(row) == ["qkv, us", "gate and up, us", "down, us"] for row in few.values())
    assert "should save 8 to 25 us" in page and "out of resource: shared memory" in page


def test_a_gpu_s_variants_begin_with_what_no_gpu_has_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_variants.variants(FUSED) == gpu_variants.SETTINGS  # here there is none
    monkeypatch.setattr(gpu_variants, "ON_GPU", True)
    found = gpu_variants.variants(FUSED)
    merged = [f"{name} of MERGED" for name in ("qkv_attention", "gate_up", "few_rows")]
    assert list(found)[:7] == [
        *merged, "few_rows, dependent", "all merged", "all merged, dependent", next(iter(gpu_variants.SETTINGS))
    ]  # fmt: skip
    assert list(found)[-6:] == [f"{piece} of PLAIN" for piece in PIECES] and all(found[name][1] for name in merged)
    assert gpu_variants.variants(MERGED)["gate_up of FUSED"][0]["kernels"].gate_up is None  # where it is served
    seen: list[Any] = []
    monkeypatch.setattr(gpu_variants, "PackedEngine", lambda _, **options: seen.append((options, launching.SHOWN_ON)))
    for name in merged[2], "all merged, dependent":
        gpu_variants.load(Step(SMALL, SMALL, SMOKE), found[name][0])
    (few, off), (all_merged, on) = seen
    assert few == {"kernels": replace(FUSED, few_rows=MERGED.few_rows)} and (9, 0) not in off
    assert all_merged == {"kernels": MERGED} and (9, 0) in on and (8, 0) not in on


def test_every_variant_beside_the_engine_as_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a constant of that name costs only itself."""
    unknown = {"no such constant": ({"engine.graphs.NONE": 1}, ""), "no native": ({"native": False}, "nothing")}
    monkeypatch.setattr(gpu_variants, "SETTINGS", unknown)
    figures, page = measure("variants", tmp_path)
    assert list(figures["faults"]) == ["load, no such constant"]
    rows = figures[VARIANTS]
    assert list(rows) == ["as served", "recorded before", "no native", AGAIN]
    assert all(row[name] > 0 for row in rows.values() for name in RATES if name in row)
    assert all(rows[name].keys() >= {"engine", "load s", *RATES} for name in ("as served", "no native", AGAIN))
    assert rows["no native"]["should save"] == "nothing" and "C++" not in rows["no native"]["engine"]
    assert "| saves ms a pass |" in page


def test_variants_for_which_no_time_is_left(tmp_path: Path) -> None:
    rows = measure("variants", tmp_path, variants_s=0)[0][VARIANTS]
    assert list(rows) == ["as served", "recorded before", *gpu_variants.SETTINGS, AGAIN]
    assert rows["bfloat16"] == {"engine": "not measured: no time was left"} and rows[AGAIN][PASS] > 0


def test_settings_are_constants_while_the_engine_loads_and_options(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are named exist."""
    from engine import graphs

    seen: dict[str, Any] = {}

    def loading(_: Path, **options: Any) -> None:
        seen.update(options, texts=graphs.ROOM)

    monkeypatch.setattr(gpu_variants, "PackedEngine", loading)
    before = graphs.ROOM
    gpu_variants.load(Step(SMALL, SMALL, SMOKE), {"engine.graphs.ROOM": 3, "graphs": False})
    assert seen == {"graphs": False, "texts": 3} and before == graphs.ROOM
    for settings, _ in gpu_variants.SETTINGS.values():
        gpu_variants.load(Step(SMALL, SMALL, SMOKE), settings)


def test_kernels_are_found_by_their_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    import engine.kernels

    tiled = replace(FUSED, attention=lambda *_: torch.empty(0))
    monkeypatch.setattr(engine.kernels, "MERGED", tiled)
    found = gpu_variants.of_kernels(FUSED)
    assert found["attention of MERGED"] == ({"kernels": tiled}, "")
    assert next(iter(found)) == "attention of MERGED" and len(found) == 7
    assert found["geglu of PLAIN"][0] == {"kernels": replace(FUSED, geglu=PLAIN.geglu)}


def test_ncu_sees_a_pass_of_the_fastest_variant(tmp_path: Path) -> None:
    rows = {"as served": {PASS: 9.0}, "without graphs": {PASS: 8.0}, "bfloat16": {"engine": "-"}}
    rows["recorded before"] = {PASS: 1.0}
    content = {"steps": {"variants": {"figures": {VARIANTS: rows}}}}
    write_json(tmp_path / "gpu_check.json", content)
    (tmp_path / "steps").mkdir()
    figures, _ = measure("ncu", tmp_path / "steps")
    assert list(figures["one pass"]) == ["without graphs"]
    write_json(tmp_path / "gpu_check.json", {})
    assert list(measure("ncu", tmp_path / "steps")[0]["one pass"]) == ["as served"]


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


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write(path, "\udcff")
    assert path.read_text() == r"\udcff" and list(tmp_path.iterdir()) == [path]
    (tmp_path / "x.json.unfinished").mkdir()  # stands for a disk that is full
    with pytest.raises(IsADirectoryError):
        write(path, "{}")
    assert path.read_text() == r"\udcff"
