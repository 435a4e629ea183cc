"""What no GPU has run: variants of the engine and tiles of its kernels, timed, and tried by themselves."""

import os
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.configs import read_architecture
from engine.faster_kernels import TRIALS
from engine.kernels import FUSED, MERGED, Kernels, launching, matmuls, qkv_attention
from engine.kernels.matmuls import Tile
from engine.kernels.triton_import import AVAILABLE
from engine.packed import PackedEngine
from lab.benchmarks import gpu_ceilings, gpu_decisions, gpu_figures, gpu_rehearsal, gpu_tiles, gpu_variants
from lab.benchmarks.gpu_figures import AGAIN, FROM_IDS, FROM_TEXTS, LASTING, PASS, QUERY, VARIANTS
from lab.benchmarks.gpu_steps import SMOKE, Step
from lab.benchmarks.gpu_variants import Variant
from lab.report import write_json
from tests.support.gpu_check import measure
from tests.support.triton_interpreter import mend
from weights import SMALL

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN_MATMUL = matmuls.matmul
RATES = (PASS, QUERY, LASTING, FROM_TEXTS, FROM_IDS)


def test_tiles_of_which_some_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is timed with its own tile, those of few rows also as they are launched dependently."""
    seen: list[tuple[Tile, bool]] = []

    def multiply(x: Tensor, weight: Tensor, gated: bool = False) -> Tensor:
        how = matmuls.tile_for(len(x), x.device)
        seen.append((how, (9, 0) in launching.SHOWN_ON))
        if how.stages == 4:
            raise RuntimeError("out of resource: shared memory")
        return PLAIN_MATMUL(x, weight, gated)

    monkeypatch.setattr(gpu_tiles, "matmul", multiply)
    monkeypatch.setattr(gpu_tiles, "by_torch", PLAIN_MATMUL)
    monkeypatch.setattr(gpu_ceilings, "WEIGHTS", 1)
    figures, page = measure("tiles", tmp_path)
    assert list(dict.fromkeys(seen)) == [(tile, False) for tile in gpu_tiles.MANY_ROWS] + [
        (tile, dependently) for tile in gpu_tiles.FEW_TILES for dependently in (False, True)
    ]
    many, few, attention = (figures[group] for group in gpu_tiles.groups())
    assert few[gpu_figures.BY_TORCH][gpu_figures.NOW] == gpu_tiles.in_words(matmuls.FEW)
    assert len(many) == 7 - len(figures["faults"]) == 5 and len(few) == 9 and len(attention) == 7
    assert all(row["us"] > 0 for rows in (many, few, attention) for row in rows.values())
    assert all(
        row["us"] == pytest.approx(sum(row[f"{name}, us"] for name in ("qkv", "gate and up", "down")))
        for row in few.values()
    )
    assert "should save 8 to 25 us" in page and "out of resource: shared memory" in page


def test_the_first_tiles_are_those_in_use_and_can_be_copied() -> None:
    assert gpu_tiles.MANY_ROWS[0] == matmuls.TILES[9, 0] and gpu_tiles.FEW_TILES[0] == matmuls.FEW
    assert gpu_tiles.TILINGS[0] == qkv_attention.TILINGS[9, 0]
    for tile in (*gpu_tiles.MANY_ROWS, *gpu_tiles.FEW_TILES, *gpu_tiles.TILINGS):
        assert eval(gpu_tiles.in_words(tile), {"Tile": Tile, "Tiling": qkv_attention.Tiling}) == tile


def test_what_failed_alone_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tile, variant = gpu_tiles.in_words(matmuls.FEW), next(iter(gpu_variants.SETTINGS))
    faults = {f"alone, {name}": "hung" for name in (tile, variant)}
    write_json(tmp_path / "gpu_check.json", {"steps": {"rehearsal": {"figures": {"faults": faults}}}})
    (tmp_path / "steps").mkdir()
    monkeypatch.setattr(gpu_ceilings, "WEIGHTS", 1)
    few = measure("tiles", tmp_path / "steps")[0][gpu_figures.OF_FEW_ROWS]
    assert tile not in few and f"{tile}, dependent" in few
    monkeypatch.setattr(gpu_variants, "SETTINGS", {variant: gpu_variants.SETTINGS[variant]})
    rows = measure("variants", tmp_path / "steps")[0][VARIANTS]
    assert rows[variant] == {"engine": "not measured: it failed in a process of its own"} and rows[AGAIN][PASS] > 0
    faults["alone, as served"] = "slow machine"
    write_json(tmp_path / "gpu_check.json", {"steps": {"rehearsal": {"figures": {"faults": faults}}}})
    assert tile in measure("tiles", tmp_path / "steps")[0][gpu_figures.OF_FEW_ROWS]


@pytest.mark.skipif(not AVAILABLE, reason="needs Triton")
@pytest.mark.usefixtures("interpreter", "flash_on_cpu")
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_the_kernels_themselves_are_timed_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, in Triton's interpreter, with few layers and columns."""
    mend(monkeypatch)
    monkeypatch.setattr(gpu_tiles, "ON_GPU", True)
    monkeypatch.setattr(gpu_tiles, "DTYPE", torch.float16)
    monkeypatch.setattr(gpu_tiles, "cuda_capture", lambda: lambda run: run)
    monkeypatch.setattr(gpu_ceilings, "device_s", lambda run, **_: 1.0)
    monkeypatch.setattr(gpu_tiles, "device_s", lambda run: run() is not None)
    a = replace(read_architecture(SMALL), hidden=32, intermediate=16, head_dim=32, windows=(None, 4))
    monkeypatch.setattr(gpu_tiles, "LENGTHS", (1, 2, 9))
    monkeypatch.setattr(gpu_tiles, "FEW_ROWS", 3)
    step = Step(SMALL, tmp_path / "x.json", SMOKE)
    for title, group in gpu_tiles.groups().items():
        with gpu_tiles.patched(next(iter(group.tiles.values()))):
            assert group.time(group.merged, a, step)["us"] > 0
            (error,) = group.error(group.merged, a).items()
            assert error[1] <= gpu_decisions.ALLOWED[error[0]], title
        assert group.time(group.base, a, step)["us"] > 0


def test_a_gpu_s_variants_begin_with_what_no_gpu_has_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu_variants.variants() == gpu_variants.SETTINGS  # here there is none
    monkeypatch.setattr(gpu_variants, "ON_GPU", True)
    found = gpu_variants.variants()
    together = ["few_rows, dependent", "all merged", "all merged, dependent"]
    merged = [f"{name} of MERGED" for name in ("qkv_attention", "gate_up", "few_rows")]
    assert list(found)[:3] == merged and list(found)[-6:] == [*together, *gpu_variants.SETTINGS]
    assert [found[name].worth for name in merged] == [trial.worth for trial in TRIALS.values()][:3]
    assert [name for name, variant in found.items() if not variant.rehearsed] == list(gpu_variants.SETTINGS)
    with monkeypatch.context() as served:
        served.setitem(TRIALS, "gate_up", TRIALS["gate_up"]._replace(shown_on=frozenset({(9, 0)})))
        assert next(iter(gpu_variants.variants().items()))[1].settings == {"kernels": FUSED}
    seen: list[Any] = []
    monkeypatch.setattr(gpu_variants, "PackedEngine", lambda _, **options: seen.append((options, launching.SHOWN_ON)))
    for name in merged[2], "all merged, dependent":
        gpu_variants.load(Step(SMALL, SMALL, SMOKE), found[name].settings)
    (few, off), (all_merged, on) = seen
    assert few == {"kernels": replace(FUSED, few_rows=MERGED.few_rows)} and (9, 0) not in off
    assert all_merged == {"kernels": MERGED} and (9, 0) in on and (8, 0) not in on


@dataclass(frozen=True, slots=True)
class Needy(Kernels):
    """Kernels with one that is nothing without gate_up's."""

    needy: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "needy", self.needy and self.gate_up is not None)


def test_a_kernel_that_needs_others_is_left_out_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    fused, merged = (Needy(*(getattr(each, field.name) for field in fields(Kernels))) for each in (FUSED, MERGED))
    monkeypatch.setattr(gpu_variants, "ON_GPU", True)
    monkeypatch.setattr(gpu_variants, "FUSED", fused)
    monkeypatch.setattr(gpu_variants, "MERGED", replace(merged, needy=True))
    found = gpu_variants.variants()
    assert "needy of MERGED" not in found and found["all merged but needy"].settings == {"kernels": merged}
    assert found["all merged"].settings["kernels"].needy


def test_every_variant_beside_the_engine_as_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One without a constant of that name costs only itself."""
    unknown = {"no such constant": Variant({"engine.graphs.NONE": 1}), "no native": Variant({"native": False}, 0.5)}
    monkeypatch.setattr(gpu_variants, "SETTINGS", unknown)
    figures, page = measure("variants", tmp_path)
    assert list(figures["faults"]) == ["load, no such constant"]
    rows = figures[VARIANTS]
    assert list(rows) == ["as served", "recorded before", "no native", AGAIN]
    assert all(row[name] > 0 for row in rows.values() for name in RATES if name in row)
    assert all(rows[name].keys() >= {"engine", "load s", *RATES} for name in ("as served", "no native", AGAIN))
    assert rows["no native"]["should save, ms a pass"] == 0.5 and "C++" not in rows["no native"]["engine"]
    assert "| saves ms a pass |" in page


def test_variants_for_which_no_time_is_left(tmp_path: Path) -> None:
    rows = measure("variants", tmp_path, variants_s=0)[0][VARIANTS]
    assert list(rows) == ["as served", "recorded before", *gpu_variants.SETTINGS, AGAIN]
    assert rows["32,768 tokens a pass"] == {"engine": "not measured: no time was left"} and rows[AGAIN][PASS] > 0


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
    for variant in gpu_variants.SETTINGS.values():
        gpu_variants.load(Step(SMALL, SMALL, SMOKE), variant.settings)


def test_the_workspace_is_left_out_before_cublas_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in gpu_variants.WITHOUT_WORKSPACE:
        monkeypatch.setenv(name, "")  # and afterwards as it was
    seen: list[str] = []

    def make(*args: Any, **options: Any) -> PackedEngine:
        seen.append(os.environ["CUBLAS_WORKSPACE_CONFIG"])
        return PackedEngine(*args, **options)

    monkeypatch.setattr(gpu_variants, "PackedEngine", make)
    figures, page = measure("workspace", tmp_path)
    assert seen == [":0:0"] and list(figures[VARIANTS]) == [gpu_figures.NO_WORKSPACE]
    assert "copies ms" in figures["time by kind of work"]["mixed texts"] and "## Without cuBLAS's workspace" in page


def test_each_is_tried_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that hangs, one that ends its process, and one that is right; the others are not waited for."""
    code = {"as served": "print('noise'); print('{\"worst\": 1}')", "hangs": "import time; time.sleep(999)",
            "ends": "import os; os.kill(os.getpid(), 11)"}  # fmt: skip
    run = subprocess.run

    def instead(command: list[str], **options: Any) -> Any:
        program = code[command[command.index("--name") + 1]]
        return run([sys.executable, "-c", program], **options | {"timeout": 30 if "sleep" not in program else 2})

    monkeypatch.setattr(gpu_rehearsal, "names", lambda: list(code))
    monkeypatch.setattr(subprocess, "run", instead)
    figures, page = measure("rehearsal", tmp_path)
    assert figures["alone"]["as served"]["worst"] == 1 and list(figures["alone"]) == ["as served"]
    assert list(figures["faults"]) == ["alone, hangs", "alone, ends"] and "did not end in 300 s" in page
    assert "ended with status -11" in page


def test_the_errors_of_vectors_and_of_a_vector_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackedEngine(SMALL)
    figures = gpu_rehearsal.error_of(Step(SMALL, SMALL, SMOKE), "as served")
    assert figures["worst"] < 1e-6 and figures["changed"] == 0
    embed, turns = engine.embed, iter([*[0] * 13, 1, 2])
    monkeypatch.setattr(engine, "embed", lambda texts: embed(texts) * (1 + next(turns)))
    assert gpu_rehearsal.errors_of_vectors(engine, PackedEngine(SMALL))["changed"] == 2
    monkeypatch.setattr(engine, "embed", lambda texts: embed(texts) + (len(texts) == 1))  # wrong only when alone
    assert gpu_rehearsal.errors_of_vectors(engine, PackedEngine(SMALL))["worst"] > 1e-3


def test_ncu_sees_a_pass_of_the_fastest_variant(tmp_path: Path) -> None:
    rows = {"as served": {PASS: 9.0}, "32,768 tokens a pass": {PASS: 8.0}, "left out": {"engine": "-"}}
    rows["recorded before"] = {PASS: 1.0}
    content = {"steps": {"variants": {"figures": {VARIANTS: rows}}}}
    write_json(tmp_path / "gpu_check.json", content)
    (tmp_path / "steps").mkdir()
    figures, _ = measure("ncu", tmp_path / "steps")
    assert list(figures["one pass"]) == ["32,768 tokens a pass"]
    write_json(tmp_path / "gpu_check.json", {})
    assert list(measure("ncu", tmp_path / "steps")[0]["one pass"]) == ["as served"]
