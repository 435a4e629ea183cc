"""The check of a GPU, as far as it runs without a GPU: on a handful of texts, and with steps that fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_report
from benchmarks.gpu import StepCommand, plan, run_step
from benchmarks.gpu_steps import SMOKE, STEPS, Measurement
from weights import SMALL

ROOT = SMALL.parent.parent


VARIANTS = ["as served", "bfloat16", "without graphs", "without fused kernels"]


def test_a_handful_of_texts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--only", "tests,speed", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    steps = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert list(steps) == ["tests", "speed"]
    speed = steps["speed"]["figures"]
    assert set(speed["throughput"]) == {"reference", *VARIANTS} and min(speed["throughput"].values()) > 0
    assert set(speed["latency_ms"]["16"]) == {"reference", *VARIANTS} and len(speed["by_batch_tokens"]) == 2
    report = (tmp_path / "gpu_check.md").read_text()
    for words in ("## Tests", " passed in ", "## Speed", "Smoke run", "| tests |", "| without graphs |"):
        assert words in report


def test_the_other_steps_in_this_process(tmp_path: Path) -> None:
    figures = {}
    for name in ("setup", "parity", "shares"):
        measured = Measurement(SMALL, tmp_path / f"{name}.json", SMOKE)
        STEPS[name](measured)
        figures[name] = json.loads(measured.out.read_text())
    assert figures["setup"]["nothing compiled yet"]["load_s"] > 0
    parity = {name: variant["one_minus_cosine"]["2-20"] for name, variant in figures["parity"].items()}
    assert list(parity) == VARIANTS
    assert max(parity["without fused kernels"].values()) <= 1e-6 and 0 < parity["bfloat16"]["alone"] < 1e-3
    for seconds in figures["shares"].values():
        assert seconds["matmul"] > 0 and seconds["attention"] > 0 and seconds["elementwise"] > 0
        assert sum(seconds.values()) == pytest.approx(2 * seconds["wall"], rel=0.05)
    steps = {name: {"seconds": 1, "fault": "", "figures": content} for name, content in figures.items()}
    report = gpu_report.markdown({"facts": {}, "missing": [], "smoke": True, "steps": steps})
    for words in ("## Setup", "## Parity", "| bfloat16 |", "## Shares", "- single texts of 32, "):
        assert words in report


def step(code: str, limit_s: float = 60) -> StepCommand:
    return StepCommand("speed", [sys.executable, "-c", code], limit_s)


def test_a_step_that_fails_says_why_and_keeps_its_figures(tmp_path: Path) -> None:
    code = "import os; open(os.environ['FOUND'], 'w').write('{\"texts\": 6}'); raise SystemExit('no more memory')"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOUND", str(tmp_path / "speed.json"))
        result = run_step(step(code), tmp_path, 60)
    assert result["fault"] == "ended with exit status 1" and result["log"] == ["no more memory"]
    assert result["figures"] == {"texts": 6}


def test_a_step_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    child = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.02)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    result = run_step(step(code), tmp_path, 1.5)
    assert result["fault"] == "was stopped after 2 s" and result["seconds"] < 20
    seen = beats.read_text()
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", "import time; time.sleep(9)"], timeout=0.3)
    assert seen and beats.read_text() == seen


def test_a_report_of_half_a_run(tmp_path: Path) -> None:
    figures = {
        "descriptions": {"as served": "packed"},
        "bfloat16 failed": "RuntimeError('x')",
        "by_batch_tokens": {"4096": 5},
    }
    results = {
        "facts": {"gpu": "NVIDIA H200", "torch": "2.11.0"}, "missing": ["pytest"], "smoke": False,
        "steps": {"tests": {"seconds": 0, "fault": "did not run: pytest is not installed; pip install pytest"},
                  "speed": {"seconds": 120.0, "fault": "was stopped after 120 s", "figures": figures}},
    }  # fmt: skip
    gpu_report.write(results, tmp_path)
    report = (tmp_path / "gpu_check.md").read_text()
    for words in (
        "Not installed: pytest.",
        "| speed | 120.0 | was stopped after 120 s |",
        "| 4,096 | 5 |",
        "bfloat16 failed",
    ):
        assert words in report
    assert "No GPU" not in report and "Smoke" not in report and "## Tests" not in report


def test_the_limits_leave_room_in_eight_minutes_and_the_checkpoint_comes_first() -> None:
    steps = plan(Path("checkpoint"), make_checkpoint=True, out=Path("out"), smoke=False)
    assert steps[0].name == "checkpoint" and sum(step.limit_s for step in steps) <= 470
    assert "tests/engine/test_gpu.py" in steps[1].command


def test_what_the_tests_printed_is_kept() -> None:
    lines = [
        "packed, float16, cuda: 1 - cosine 9.1e-06 alone",
        "noise",
        "FAILED tests/engine/test_gpu.py::x",
        "3 passed in 2s",
    ]
    assert gpu_report.test_summary(lines) == [lines[0], *lines[2:]]
