"""The comparison of engines: real ones on the small checkpoint, and the tables that come of figures."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from engine.model import FLOAT32
from engine.tokenizer import Tokenizer
from lab import report
from lab.benchmarks import engines_report, peers
from lab.benchmarks.embedders import errors, load_packed
from lab.benchmarks.engines import EngineProcess, choose_batch_size, measure, measure_errors, summary
from lab.benchmarks.texts import MIXED, Scenario, make_scenarios
from weights import SMALL

ENGINES = ("packed", "packed-float32", "reference-bfloat16")


@pytest.fixture(scope="module")
def processes() -> Iterator[list[EngineProcess]]:
    """Engines that need no optional package, on the small checkpoint."""
    with ThreadPoolExecutor() as pool:
        started = list(pool.map(EngineProcess, ENGINES, [SMALL] * len(ENGINES)))
    yield started
    for process in started:
        process.close()


@pytest.fixture(scope="module")
def scenarios() -> dict[str, Scenario]:
    """What --quick measures, by name."""
    return {scenario.name: scenario for scenario in make_scenarios(Tokenizer(SMALL), quick=True)}


def test_quick_measures_fewer_texts(scenarios: dict[str, Scenario]) -> None:
    assert list(scenarios) == [
        MIXED, "8 texts of 128", "one text of 16", "one text of 64", "one text of 512", "16 texts of 8-300, one call"
    ]  # fmt: skip
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
    assert chosen["reference-bfloat16"] in {2, 4, 8}  # 8 holds all six texts
    single = scenarios["one text of 16"]
    assert all(choose_batch_size(process, single, [2]) == 32 for process in processes)


def test_a_report_of_real_engines(
    processes: list[EngineProcess], scenarios: dict[str, Scenario], tmp_path: Path
) -> None:
    measured = [scenarios["8 texts of 128"], scenarios["one text of 16"]]
    mixed = Scenario(MIXED, "throughput", scenarios[MIXED].texts[:8], scenarios[MIXED].token_counts[:8])
    for scenario in measured:
        measure(processes, scenario, [8], rounds=1)
    results = summary(SMALL, processes, measured)
    results["errors"] = measure_errors(processes, mixed)
    of_engines = results["errors"]["engines"]
    assert results["errors"]["against"] == "packed-float32" and of_engines["packed-float32"]["worst"] < 1e-12
    assert 1e-6 < of_engines["reference-bfloat16"]["median"] < 1e-2
    assert all(error["median"] <= error["worst"] for error in of_engines.values())
    engines_report.write(results, tmp_path / "cpu")
    page = (tmp_path / "cpu.md").read_text()
    assert "| 1 - cosine against packed-float32, 64 mixed texts | median | worst |" in page
    assert page.count(", batch 8") == 1 and "process start to first vector" in page and "vs reference-bfloat16" in page
    assert 1_000 < (tmp_path / "cpu.png").stat().st_size < 150_000


def test_a_peer_that_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.NEEDED, "openvino", ("no_such_module",))
    assert peers.missing("openvino") == (
        "openvino needs the Python module no_such_module; install requirements/peers.txt, or leave openvino out"
    )
    monkeypatch.setitem(peers.NEEDED, "openvino-int8", ("no_such_module", "json", "nor_this"))
    assert "openvino-int8 needs the Python modules no_such_module and nor_this; " in peers.missing("openvino-int8")
    monkeypatch.delenv(peers.GGUF, raising=False)
    monkeypatch.setitem(peers.NEEDED, "llama-cpp", ("json",))
    assert peers.missing("llama-cpp").endswith("name one in the environment variable GGUF")
    assert peers.missing("packed") == ""


@pytest.mark.parametrize("peer", sorted({*peers.LOADERS} - {"llama-cpp"}))  # which aborts with the small checkpoint
def test_a_peer_computes_like_vectors(scenarios: dict[str, Scenario], peer: str) -> None:
    if reason := peers.missing(peer):
        pytest.skip(reason)
    texts = scenarios[MIXED].texts[:8]
    loaded, ours = peers.LOADERS[peer](SMALL), load_packed(SMALL, numbers=FLOAT32)
    cosines, norms = errors(loaded.embed(texts, 3), ours.embed(texts, 0))
    in_16_bits = 1e-2 if "bf16" in loaded.description else 1e-5
    allowed = {"openvino": in_16_bits, "openvino-int8": 0.5}.get(peer, 2e-2)
    assert max(cosines.max(), norms.max()) < allowed


def test_errors_are_against_the_first_engine_where_none_is_exact(
    processes: list[EngineProcess], scenarios: dict[str, Scenario]
) -> None:
    short = Scenario("short", "call", scenarios[MIXED].texts[:2], scenarios[MIXED].token_counts[:2])
    assert measure_errors([p for p in processes if p.engine != "packed-float32"], short)["against"] == "packed"


def measured_results(ratios: dict[str, float], errors: dict[str, float]) -> dict[str, Any]:
    """Return results of packed-int8 beside others on 64 mixed texts: how many times as fast it is, and all errors."""
    figures = {"batch_size": 8, "p50_ms": 1.0, "p99_ms": 1.0, "tokens_per_s": 1.0, "texts_per_s": 1.0}
    costs = {"description": "", "load_s": 1.0, "memory_bytes": 1, "gpu_memory_bytes": 0}
    names = ["packed-int8", *ratios]
    scenario = {"name": MIXED, "kind": "throughput", "engines": dict.fromkeys(names, figures), "speedup": ratios}
    off = {name: {"median": errors[name], "worst": errors[name] * 2} for name in errors}
    return {
        "machine": {"instructions": "AVX512-BF16", "cores": 2, "gpu": None},
        "versions": {},
        "architecture": {"layers": 24},
        "engines": dict.fromkeys(names, costs),
        "scenarios": [scenario],
        "errors": {"against": "packed-float32", "texts": MIXED, "engines": off},
    }


def test_the_report_says_which_targets_are_reached() -> None:
    ratios = {"packed-float32": 2.81, "plain": 4.0, "openvino-int8": 0.99, "onnxruntime-int8": 1.5}
    errors = {"packed-int8": 4e-3, "packed-float32": 0.0, "openvino-int8": 4e-1, "onnxruntime-int8": 3e-3}
    results = measured_results(ratios, errors)
    page = engines_report.markdown(results)
    assert page.endswith(
        "Targets for packed-int8, on two cores with AVX512-BF16 and the full shape:\n\n"
        "| texts | vs packed-float32 | vs openvino-int8 | vs onnxruntime-int8 |\n| --- | --- | --- | --- |\n"
        "| 64 mixed texts | 2.81x of 2.8x, reached | 0.99x of 1.0x, missed | 1.50x of 1.0x, reached |\n"
        "| smaller errors, median and worst |  | reached | missed |\n"
    )
    for facts in ({"instructions": "AVX2"}, {"instructions": "AMX"}, {"cores": 4}):
        other = results | {"machine": results["machine"] | facts}
        assert "Targets" not in engines_report.markdown(other)


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
