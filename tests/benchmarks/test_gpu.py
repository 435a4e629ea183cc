"""The check of a GPU as a whole, on a handful of texts: killed, hanging, without packages, with broken files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import gpu, gpu_page, gpu_report
from benchmarks.gpu import LIMITS_S, TOTAL_S, StepCommand, check, plan
from benchmarks.gpu_parts import STEPS, read_json
from weights import SMALL

ROOT = SMALL.parent.parent
PATIENCE_S = 120  # other programs may keep the machine busy
MOST_FILES = 8
MOST_BYTES = 16 << 20


def start(out: Path, *options: str, **settings: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--smoke", "--out", str(out), *options]
    settings = {"OMP_NUM_THREADS": "1"} | settings  # two wait for each other where other programs run
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | settings, stdout=subprocess.DEVNULL)


def wait_until(holds: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.005)


def still_running(out: Path) -> list[psutil.Process]:
    """The processes that were started with this folder."""
    found = psutil.process_iter(["cmdline"])
    return [process for process in found if any(str(out) in word for word in process.info["cmdline"] or [])]


def interrupt(driver: subprocess.Popen[bytes], out: Path, step: str, number: int = signal.SIGKILL) -> dict[str, Any]:
    """Send the signal to the check when the step has its first figures or line; return what the step then left."""
    sign = out / (f"{step}.log" if step == "tests" else f"{step}.json")
    wait_until(lambda: sign.exists() and sign.stat().st_size, driver)
    driver.send_signal(number)
    driver.wait()
    wait_until(lambda: not still_running(out))
    return read_json(out / f"{step}.json")


def read_report(out: Path) -> tuple[dict[str, Any], str]:
    """The steps in gpu_check.json, and gpu_check.md; no more files than a folder of results should have."""
    assert len(list(out.iterdir())) <= MOST_FILES and all(path.stat().st_size < MOST_BYTES for path in out.iterdir())
    return json.loads((out / "gpu_check.json").read_text())["steps"], (out / "gpu_check.md").read_text()


@pytest.mark.parametrize("step", STEPS[:-1])
def test_a_killed_check_leaves_all_that_it_measured(step: str, tmp_path: Path) -> None:
    left = interrupt(start(tmp_path, "--only", step), tmp_path, step)
    assert read_report(tmp_path)[1].startswith("# GPU check\n")
    if step == "checkpoint":
        gpu_report.rebuild(tmp_path)
        assert read_report(tmp_path)[0]["checkpoint"]["figures"] == left != {}
        return
    steps, page = read_report(tmp_path)
    assert list(steps) == ["checkpoint"] and steps["checkpoint"]["fault"] == "" and "| checkpoint |" in page
    subprocess.run([sys.executable, "-m", "benchmarks.gpu_report", str(tmp_path)], cwd=ROOT, check=True)
    steps, page = read_report(tmp_path)
    assert list(steps) == ["checkpoint", step] and steps[step]["fault"] == gpu_report.INTERRUPTED
    assert f"## {gpu_page.TITLES[step]}" in page and f"| {step} |  | was interrupted" in page
    if step == "tests":
        assert steps[step]["summary"] == ["so far 0 passed, 0 failed"] or "passed" in steps[step]["summary"][-1]
    else:
        assert steps[step]["figures"] == left != {} and "Cannot be shown" not in page


def test_a_whole_check_that_is_killed_in_its_last_step(tmp_path: Path) -> None:
    interrupt(start(tmp_path), tmp_path, "setup")
    gpu_report.rebuild(tmp_path)
    steps, page = read_report(tmp_path)
    assert list(steps) == list(STEPS) == list(LIMITS_S)
    faults = {name: step["fault"] for name, step in steps.items() if step["fault"]}
    assert faults == {"setup": gpu_report.INTERRUPTED}, faults
    assert page.startswith("# GPU check\n") and "python -m benchmarks.gpu --smoke --out " in page
    for words in (
        "Smoke run", "**No GPU was used**", ": the floor**", "| attention |", "](gpu_check.png)",
        "| sentence-transformers, bfloat16, together |", "| as served, token ids made beforehand |",
        "| vs sentence-transformers |", "**Throughput by length of the texts.**", "| 256 tokens |",
        "**Kernels, mixed texts.**", "**Kernels, single texts of 32 tokens.**", "| GB/s |", "qkv, 192 to 320, bfloat16",
        "| alone |", "| beside a request of 8 mixed texts |", " passed in ", "| nothing compiled yet |",
    ):  # fmt: skip
        assert words in page, words
    assert "Cannot be shown" not in page and (tmp_path / "gpu_check.png").stat().st_size > 10_000


def test_a_check_that_is_ended_politely_has_its_report(tmp_path: Path) -> None:
    interrupt(start(tmp_path, "--only", "kernels"), tmp_path, "kernels", signal.SIGTERM)
    steps, _ = read_report(tmp_path)
    assert steps["kernels"]["fault"] == gpu_report.INTERRUPTED and steps["kernels"]["figures"]


def test_packages_that_are_missing_cost_only_what_needs_them(tmp_path: Path) -> None:
    """Python imports sitecustomize first; a module that is None there cannot be imported."""
    names = ("cachetools", "matplotlib", "pytest")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules |= dict.fromkeys({names})\n")
    out = tmp_path / "out"
    (out / "gpu_check").mkdir(parents=True)
    for name in ("load.md", "speed.json"):  # not a check's, and an earlier one's
        (out / name).write_text("{}")
    driver = start(out, "--only", "load,tests", PYTHONPATH=str(tmp_path))
    assert driver.wait(PATIENCE_S) == 1
    steps, page = read_report(out)
    assert steps["load"]["fault"] == "did not run: cachetools is not installed; put its wheel on PYTHONPATH"
    assert steps["tests"]["fault"] == "did not run: pytest is not installed; pip install pytest"
    assert "Not installed: matplotlib." in page and "## Tests" not in page and "## Many clients" not in page
    assert sorted(path.name for path in out.iterdir()) == [
        "gpu_check", "gpu_check.json", "gpu_check.log", "gpu_check.md", "load.md"
    ]  # fmt: skip


def step(code: str, name: str = "speed", limit_s: float = 60) -> StepCommand:
    return StepCommand(name, [sys.executable, "-c", code], limit_s)


def run(out: Path, *steps: StepCommand) -> dict[str, Any]:
    results: dict[str, Any] = {"steps": {}}
    check(list(steps), results, out)
    return read_report(out)[0]


def test_a_step_that_fails_says_why_and_keeps_its_figures(tmp_path: Path) -> None:
    code = f"open({str(tmp_path / 'speed.json')!r}, 'w').write('{{\"texts\": {{}}}}'); raise SystemExit('no memory')"
    steps = run(tmp_path, step(code), step("import os; os.kill(os.getpid(), 11)", "load"))
    assert steps["speed"]["fault"] == "ended with exit status 1" and steps["speed"]["log"] == ["no memory"]
    assert steps["speed"]["figures"] == {"texts": {}}
    assert steps["load"]["fault"] == "ended by SIGSEGV" and "Segmentation fault" in "".join(steps["load"]["log"])
    page = (tmp_path / "gpu_check.md").read_text()
    assert "no memory" in page and "Not all of it ran to its end: speed, load;" in page
    assert "=== speed\nno memory" in (tmp_path / "gpu_check.log").read_text()


@pytest.mark.parametrize("content", ['{"throughput": {"as serv', "[]", "\udcff"])
def test_a_broken_file_costs_only_its_step(content: str, tmp_path: Path) -> None:
    (tmp_path / "gpu_check.json").write_bytes(b'{"steps": {')
    write = "import os; open({!r}, 'wb').write({!r})".format
    broken = step(write(str(tmp_path / "speed.json"), content.encode(errors="surrogateescape")))
    steps = run(tmp_path, broken, step(write(str(tmp_path / "load.json"), b'{"x": {"alone": {"ms": 5}}}'), "load"))
    assert steps["speed"] == {"seconds": steps["speed"]["seconds"], "fault": "left no figures that can be read",
                              "figures": {}, "log": []}  # fmt: skip
    assert steps["load"]["fault"] == "" and "| alone | 5 |" in (tmp_path / "gpu_check.md").read_text()


def test_a_step_that_hangs_is_stopped_with_what_it_started_and_shows_where_it_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "TOTAL_S", 4)
    beats = tmp_path / "beats"
    child = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.02)"
    code = f"import subprocess, sys\ndef hang(): subprocess.run([sys.executable, '-c', {child!r}])\nhang()"
    late = step("import time; time.sleep(1)", "load", limit_s=2)
    steps = run(tmp_path, step(code, limit_s=1), late, step("", "setup", limit_s=9))
    assert steps["speed"]["fault"] == "did not run: no time was left"
    monkeypatch.setattr(gpu, "TOTAL_S", 5)
    steps = run(tmp_path, step("import time; time.sleep(1.2)", "kernels", limit_s=0.1), step(code, limit_s=2))
    assert steps["kernels"]["fault"] == "left no figures that can be read"  # it took time that nothing else needs
    assert steps["speed"]["fault"].startswith("was stopped after ") and steps["speed"]["seconds"] < 20
    assert "in hang" in "".join(steps["speed"]["log"])
    seen = beats.read_text()
    time.sleep(0.3)
    assert seen and beats.read_text() == seen


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_a_step_ends_with_the_check_that_is_killed(tmp_path: Path) -> None:
    endless = step(f"import time; open({str(tmp_path / 'begun')!r}, 'w'); time.sleep(999)")
    code = "from pathlib import Path; from benchmarks.gpu import StepCommand, run_step"
    driver = subprocess.Popen(
        [sys.executable, "-c", f"{code}; run_step({endless}, Path({str(tmp_path)!r}), 999)"], cwd=ROOT
    )
    wait_until((tmp_path / "begun").exists, driver)
    driver.kill()
    driver.wait()
    wait_until(lambda: not still_running(tmp_path))


def test_the_limits_fit_and_the_tests_are_those_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = plan(Path("checkpoint"), tmp_path, smoke=False)
    assert sum(step.limit_s for step in steps) <= TOTAL_S <= 540 and [step.name for step in steps] == list(STEPS)
    assert [step.name for step in plan(Path("c"), tmp_path, smoke=False, only="load")] == ["checkpoint", "load"]
    command = next(step.command for step in steps if step.name == "tests")
    assert command.index("tests/engine/test_gpu.py") < command.index("tests/engine/test_kernels.py")
    assert "-v" in command and command[-2:] == ["-k", "not compiles"]
    monkeypatch.setattr(gpu, "is_installed", {"pytest_timeout"}.__contains__)
    command = next(step.command for step in plan(Path("c"), tmp_path, smoke=False) if step.name == "tests")
    assert "--timeout=60" in command
