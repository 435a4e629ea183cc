"""The comparison of engines: real ones on the small checkpoint, and the tables that come of figures."""

import argparse
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engines_report, loaders, report
from benchmarks.engines import EngineProcess, choose_batch_size, measure, measure_errors, summary
from benchmarks.engines_targets import targets
from benchmarks.loaders import engine_names, missing
from benchmarks.scenarios import MIXED, TARGETED, Scenario, make_scenarios
from engine.tokenizer import Tokenizer
from weights import SMALL

ENGINES = ("packed", "packed-float32", "reference", "reference-bfloat16")


@pytest.fixture(scope="module")
def processes() -> Iterator[list[EngineProcess]]:
    """Each engine that needs no optional package, on the small checkpoint."""
    with ThreadPoolExecutor() as pool:
        started = list(pool.map(EngineProcess, ENGINES, [SMALL] * len(ENGINES)))
    yield started
    for process in started:
        process.close()


@pytest.fixture(scope="module")
def scenarios() -> dict[str, Scenario]:
    """What --quick measures, by name."""
    return {scenario.name: scenario for scenario in make_scenarios(Tokenizer(SMALL), quick=True)}


def test_quick_measures_what_has_a_target_and_one_call(scenarios: dict[str, Scenario]) -> None:
    assert list(scenarios)[:5] == list(TARGETED) and len(scenarios) == 6
    assert len(scenarios[MIXED].texts) == 64 and scenarios["8 texts of 128"].token_counts == [128] * 8
    full = {scenario.name: scenario.texts for scenario in make_scenarios(Tokenizer(SMALL), quick=False)}
    assert all(full[name] == scenario.texts for name, scenario in scenarios.items())
    assert set(full) - set(scenarios) == {"512 texts of 16", "16 texts of 512", "4 texts of 2048"}


def test_each_engine_that_takes_a_batch_size_gets_its_own_best_batch_size(
    processes: list[EngineProcess], scenarios: dict[str, Scenario]
) -> None:
    texts = Scenario("texts", "throughput", scenarios[MIXED].texts[:6], scenarios[MIXED].token_counts[:6])
    chosen = {process.engine: choose_batch_size(process, texts, [2, 4, 8, 64]) for process in processes}
    assert chosen["packed"] == chosen["packed-float32"] == 32  # which they do not heed
    assert {chosen["reference"], chosen["reference-bfloat16"]} <= {2, 4, 8}  # 8 holds all six texts
    single = scenarios["one text of 16"]
    assert all(choose_batch_size(process, single, [2]) == 32 for process in processes)


def test_a_report_of_real_engines(
    processes: list[EngineProcess], scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    measured = [scenarios["8 texts of 128"], scenarios["one text of 16"]]
    mixed = Scenario(MIXED, "throughput", scenarios[MIXED].texts[:8], scenarios[MIXED].token_counts[:8])
    for scenario in measured:
        measure(processes, scenario, [8], rounds=1)
    results = summary(argparse.Namespace(checkpoint=SMALL, rounds=1), processes, measured)
    results |= {"load_seconds": {process.engine: [process.load_s] for process in processes}, "time_shares": {}}
    results["errors"] = measure_errors(processes, mixed)
    of_engines = results["errors"]["engines"]
    assert results["errors"]["against"] == "packed-float32" and of_engines["packed-float32"]["worst"] < 1e-12
    assert of_engines["reference"]["worst"] < 1e-6 < of_engines["reference-bfloat16"]["median"] < 1e-2
    assert all(error["median"] <= error["worst"] for error in of_engines.values())
    engines_report.write(results, tmp_path / "cpu")
    page = (tmp_path / "cpu.md").read_text()
    assert "| 1 - cosine against packed-float32, 64 mixed texts | median | worst |" in page
    assert page.count(", batch 8") == 2 and "vs reference-bfloat16" in page and "Targets" not in page
    assert 1_000 < (tmp_path / "cpu.png").stat().st_size < 150_000


def test_errors_are_against_the_first_engine_where_none_is_exact(
    processes: list[EngineProcess], scenarios: dict[str, Scenario]
) -> None:
    short = Scenario("short", "call", scenarios[MIXED].texts[:2], scenarios[MIXED].token_counts[:2])
    assert measure_errors([p for p in processes if p.engine != "packed-float32"], short)["against"] == "packed"


def results_of(speedup: float, number_format: str = "bfloat16", layers: int = 24) -> dict[str, Any]:
    """Results in which packed is so many times as fast as each other engine."""
    others = ("plain", "reference", "openvino")
    return {
        "architecture": {"layers": layers, "hidden": 768},
        "engines": {name: {"description": f"packed, {number_format}, cpu"} for name in ("packed", *others)},
        "scenarios": [{"name": name, "speedup": dict.fromkeys(others, speedup)} for name in TARGETED],
    }


def test_targets_are_reached_or_missed() -> None:
    page = targets(results_of(4.0))
    assert "bfloat16" in page and "| texts | vs plain | vs reference |" in page
    assert "| 64 mixed texts | 4.00x of 5.0x, missed | 4.00x of 7.0x, missed |" in page
    assert "| one text of 64 | 4.00x of 3.3x, reached | 4.00x of 4.0x, reached |" in page
    assert page.count("reached") == 6 and page.count("missed") == 4
    assert targets(results_of(100.0)).count("reached") == 10


def test_targets_of_what_was_measured() -> None:
    results = results_of(4.0)
    results["scenarios"] = results["scenarios"][:1]
    assert targets(results).count("missed") == 2


@pytest.mark.parametrize(
    "results",
    [
        results_of(4.0, number_format="float32"),
        results_of(4.0, layers=6),
        results_of(4.0) | {"scenarios": []},
        results_of(4.0) | {"engines": {"plain": {"description": "packed, bfloat16"}, "reference": {}}},
        results_of(4.0) | {"engines": {"packed": {"description": "packed, bfloat16"}, "openvino": {}}},
    ],
)
def test_no_targets_for_other_formats_shapes_and_engines(results: dict[str, Any]) -> None:
    assert targets(results) == ""


def test_peers_that_are_not_to_be_had_are_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setitem(loaders.PEERS, "openvino", "no_such_module")
    assert engine_names("packed,openvino,reference") == ["packed", "reference"]
    assert caplog.messages == ["openvino is left out: the Python module no_such_module is not installed"]
    with pytest.raises(argparse.ArgumentTypeError, match="none of openvino"):
        engine_names("openvino")
    monkeypatch.setitem(loaders.PEERS, "llama-cpp", "json")  # a module that is there
    monkeypatch.setenv("GGUF", str(tmp_path / "none.gguf"))
    assert missing("llama-cpp") == "the environment variable GGUF names no file"
    (tmp_path / "none.gguf").touch()
    assert missing("llama-cpp") == ""


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no engine 'fast'; choose from packed,"):
        engine_names("packed,fast")
    assert set(loaders.DEFAULT.split(",")) | {"packed-float32"} == set(loaders.LOADERS)


@pytest.mark.skipif(bool(missing("openvino")), reason="openvino is not installed")
def test_openvino_computes_the_same_vectors(scenarios: dict[str, Scenario]) -> None:
    texts = [*scenarios[MIXED].texts[:6], scenarios["one text of 512"].texts[0]]
    vectors, description, _ = loaders.LOADERS["openvino"](SMALL)
    expected = loaders.LOADERS["packed-float32"](SMALL)[0](texts, 1)
    assert description.startswith("OpenVINO")
    assert vectors(texts, 4) == pytest.approx(expected, abs=5e-3)


def test_the_machine_names_its_instructions_and_their_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert report.instructions("avx2 avx512f avx512_bf16 amx_bf16 amx_tile") == "AMX"
    assert report.instructions("avx2 avx512f avx512_bf16") == "AVX512-BF16"
    assert report.instructions("avx2 avx512f") == "AVX512" and report.instructions("sse4_2 avx2") == "AVX2"
    assert report.instructions("") == "other"
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    machine = report.machine()
    assert machine["ONEDNN_MAX_CPU_ISA"] == "AVX2" and "ATEN_CPU_CAPABILITY" not in machine
    assert machine["instructions"] in {*report.INSTRUCTIONS, "other"} and machine["cpu"]
