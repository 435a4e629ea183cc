"""The page of a GPU's check, from as much as there is."""

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_page, gpu_report
from benchmarks.gpu_parts import as_json, write

SIZE: dict[str, Any] = {"texts": 100, "tokens": 10_000, "MFLOP a token": 200.0}
KINDS = {
    "matmul ms": 4.0,
    "attention ms": 1.0,
    "elementwise ms": 2.0,
    "copies ms": 0.5,
    "host ms": 9.0,
    "wall ms": 16.5,
}


def results(**figures: dict[str, Any]) -> dict[str, Any]:
    steps = {name: {"seconds": 1, "fault": "", "figures": content} for name, content in figures.items()}
    return {"command": "python -m benchmarks.gpu", "missing": [], "smoke": False, "steps": steps}


SPEED = {
    "throughput": {
        "as served": SIZE | {"tokens/s": 1.5e6},
        "sentence-transformers": SIZE | {"tokens/s": 3e5},
    }
}
CEILINGS = {"floor": {"as served": {"TFLOP/s": 600.0, "MFLOP a token": 180.0}}}
KERNELS = {
    "time by kind of work": {"mixed texts": SIZE | KINDS},
    "kernels, mixed texts": {"gemm<a_b>": {"share": 0.25}},
}


def test_the_distance_from_the_floor() -> None:
    page = gpu_page.markdown(results(speed=SPEED, ceilings=CEILINGS, kernels=KERNELS))
    assert "**3,000,000 tokens/s: the floor**" in page and "**1,500,000 tokens/s, 50% of it**" in page
    assert "| as served | 100 | 10,000 | 200 | 1,500,000 | 50.0% | 5.00x |" in page
    assert "| `gemm<a_b>` | 25.0% |" in page
    parts = gpu_page.pass_ms(results(speed=SPEED, ceilings=CEILINGS, kernels=KERNELS))
    assert sum(parts.values()) == pytest.approx(16_384 / 1.5e3, rel=0.2)
    assert parts["matmuls at their best rate"] == pytest.approx(16_384 * 180e6 / 600e12 * 1e3)
    assert parts["rest of the matmuls"] == pytest.approx(4.0 * 1.6384 - parts["matmuls at their best rate"])


def test_half_a_run() -> None:
    half = results(speed={"throughput": {"as served": SIZE | {"tokens/s": 1e6}}}, kernels=KERNELS)
    half["steps"]["speed"] |= {"fault": "was stopped after 140 s", "log": ["Killed"]}
    half["steps"]["tests"] = {"seconds": 0, "fault": "did not run: pytest is not installed; pip install pytest"}
    half["missing"] = ["pytest"]
    page = gpu_page.markdown(half)
    for words in (
        "Not installed: pytest.", "| speed | 1 | was stopped after 140 s |", "Killed", "The machine is not known.",
        "Not all of it ran to its end: speed, tests;", "| as served | 100 |", "| device waits for the host |",
    ):  # fmt: skip
        assert words in page
    assert "of the floor" not in page and "vs sentence" not in page and "Smoke" not in page and "## Tests" not in page
    assert gpu_page.markdown({}).startswith("# GPU check")


def test_figures_of_another_shape_cost_only_their_section() -> None:
    page = gpu_page.markdown(results(speed={"throughput": 5}, kernels=KERNELS))
    assert "Cannot be shown: " in page and "| `gemm<a_b>` |" in page


@pytest.mark.parametrize("known", [{}, {"speed": SPEED}, {"kernels": KERNELS, "ceilings": CEILINGS}])
def test_the_plot_of_as_much_as_there_is(known: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / "gpu_check.json", as_json(results(**known)))
    gpu_report.rebuild(tmp_path)
    assert (tmp_path / "gpu_check.png").stat().st_size > 1_000


def test_no_plot_without_matplotlib_until_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "gpu_check.json", as_json(results(speed=SPEED, kernels=KERNELS)))
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "benchmarks.gpu_plot", raising=False)
        patch.setitem(sys.modules, "matplotlib", None)
        gpu_report.rebuild(tmp_path)
    page = (tmp_path / "gpu_check.md").read_text()
    assert "`python -m benchmarks.gpu_report DIR` draws it" in page and not (tmp_path / "gpu_check.png").exists()
    gpu_report.rebuild(tmp_path)
    assert "](gpu_check.png)" in (tmp_path / "gpu_check.md").read_text() and (tmp_path / "gpu_check.png").exists()


def test_what_the_tests_printed_is_kept() -> None:
    lines = ["x.py::a packed, float16, cuda: 1 - cosine 9.1e-06 alone", "PASSED", "noise", "x.py::b FAILED"]
    ended = ["FAILED x.py::b - assert 1 == 2", "=== 1 failed, 1 passed in 2.10s ==="]
    assert gpu_report.test_summary([*lines, *ended]) == [lines[0], *ended]
    assert gpu_report.test_summary(lines) == [lines[0], "so far 1 passed, 1 failed"]
    assert gpu_report.test_summary([]) == ["so far 0 passed, 0 failed"]
