"""The check of a GPU as a whole, on a handful of texts: killed, hanging, without packages, with broken files."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from lab.benchmarks import gpu, gpu_report
from lab.benchmarks.gpu import TESTS, TOTAL_S, check, plan
from lab.benchmarks.gpu_report import LIMITS_S, step_file, write_report
from lab.report import read_json
from tests.support.gpu_check import others
from weights import SMALL

ROOT = SMALL.parent.parent
PATIENCE_S = 300  # other programs may keep the machine busy
STEPS = list(LIMITS_S)
RUN_HERE = [step for step in STEPS if step != "ncu"]
MOST_FILES = 8
MOST_BYTES = 16 << 20


def start(out: Path, *options: str, **settings: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "lab.benchmarks.gpu", "--smoke", "--out", str(out), *options]
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


def interrupt(
    driver: subprocess.Popen[bytes], out: Path, step: str, number: int = signal.SIGKILL, sign: str = ""
) -> dict[str, Any]:
    """Send the signal to the check when the step has its first figures or line; return what the step then left."""
    file = step_file(out, step, sign or ("log" if step in gpu_report.PRINTED else "json"))
    wait_until(lambda: file.exists() and file.stat().st_size, driver)
    driver.send_signal(number)
    driver.wait()
    wait_until(lambda: not still_running(out))
    return read_json(step_file(out, step, "json"))


def read_report(out: Path) -> tuple[dict[str, Any], str]:
    """The steps in gpu_check.json, and gpu_check.md; no more files than a folder of results should have."""
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) <= MOST_FILES and all(path.stat().st_size < MOST_BYTES for path in files)
    return json.loads((out / "gpu_check.json").read_text())["steps"], (out / "gpu_check.md").read_text()


def report_again(out: Path) -> None:
    subprocess.run([sys.executable, "-m", "lab.benchmarks.gpu", "--report", "--out", str(out)], cwd=ROOT, check=True)


# The others take a process or three each, and are killed alike.
KILLED = ("checkpoint", "variants")


@pytest.mark.parametrize(
    "step", [step if step in KILLED else pytest.param(step, marks=pytest.mark.fuzz) for step in RUN_HERE]
)
def test_a_killed_check_leaves_all_that_it_measured(step: str, tmp_path: Path) -> None:
    left = interrupt(start(tmp_path, "--only", step), tmp_path, step)
    assert read_report(tmp_path)[1].startswith("# GPU check\n")
    if step == "checkpoint":
        report_again(tmp_path)
        assert read_report(tmp_path)[0]["checkpoint"]["figures"] == left != {}
        return
    steps, page = read_report(tmp_path)
    assert list(steps) == ["checkpoint"] and steps["checkpoint"]["fault"] == "" and "| checkpoint |" in page
    report_again(tmp_path)
    steps, page = read_report(tmp_path)
    assert list(steps) == ["checkpoint", step] and steps[step]["fault"] == gpu_report.INTERRUPTED
    assert f"| {step} |  | was interrupted" in page
    if step in gpu_report.PRINTED:
        assert f"The end of what {step} printed:" in page
    else:
        assert f"## {gpu_report.TITLES[step]}" in page and "Cannot be shown" not in page
        assert steps[step]["figures"] == left != {}


@pytest.mark.fuzz  # takes half a minute
def test_a_whole_check_that_is_killed_in_its_last_step(tmp_path: Path) -> None:
    interrupt(start(tmp_path), tmp_path, "tests")
    report_again(tmp_path)
    steps, page = read_report(tmp_path)
    assert list(steps) == RUN_HERE
    faults = {name: step["fault"] for name, step in steps.items() if step["fault"]}
    assert faults == {"tests": gpu_report.INTERRUPTED}, faults
    assert page.startswith("# GPU check\n") and "python -m lab.benchmarks.gpu --smoke --out " in page
    for words in (
        "Smoke run", "**No GPU was used**", "of the floor**", "| attention |", "](gpu_check.png)",
        "| as served, again |", "| graphs as recorded |", "**Alone.**", "**Attention of a layer.**",
        "| 64 cubed |", "| saves ms a pass |", "| recorded before |",
        "| vs sentence-transformers |", "**As served, by length.**", "| waits for the host |",
        "**Gate_up with GeGLU.**", "| Tile(rows=128, columns=256, step=64, warps=8, stages=3, described=True) |",
        "| Tile(rows=16, columns=32, step=128, warps=4, stages=6), dependent |",
        "**Kernels, mixed texts.**", "**Kernels, single texts of 32 tokens.**", "| GB/s |", "qkv, 192 to 320, ",
        "| alone |", "| beside a request of 1 mixed texts |",
    ):  # fmt: skip
        assert words in page, words
    assert "Cannot be shown" not in page and (tmp_path / "gpu_check.png").stat().st_size > 10_000


@pytest.mark.fuzz
def test_a_check_that_is_ended_politely_has_its_report(tmp_path: Path) -> None:
    interrupt(start(tmp_path, "--only", "kernels"), tmp_path, "kernels", signal.SIGTERM)
    steps, _ = read_report(tmp_path)
    assert steps["kernels"]["fault"] == gpu_report.INTERRUPTED and steps["kernels"]["figures"]


@pytest.mark.fuzz
def test_packages_that_are_missing_cost_only_what_needs_them(tmp_path: Path) -> None:
    """Python imports sitecustomize first; a module that is None there cannot be imported."""
    names = dict.fromkeys(others())
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules |= {names}\n")
    out = tmp_path / "out"
    (out / "gpu_check").mkdir(parents=True)
    (out / "gpu_steps").mkdir()
    for name in ("load.md", "gpu_steps/speed.json"):  # not a check's, and an earlier one's
        (out / name).write_text("{}")
    driver = start(out, "--only", "load,tests", PYTHONPATH=str(tmp_path))
    assert driver.wait(PATIENCE_S) == 1
    steps, page = read_report(out)
    assert list(steps) == ["checkpoint", "load", "tests"] and steps["load"]["fault"] == "ended with exit status 1"
    assert "import of cachetools halted" in "".join(steps["load"]["log"])
    assert steps["tests"]["fault"] == "ended with exit status 1" and "pytest" in "".join(steps["tests"]["log"])
    assert "No plot" in json.loads((out / "gpu_check.json").read_text())["plot"] and "## Many clients" not in page
    assert sorted(path.name for path in out.iterdir()) == [
        "gpu_check", "gpu_check.json", "gpu_check.md", "gpu_steps", "load.md"
    ]  # fmt: skip


def run(out: Path, **code: str) -> dict[str, Any]:
    """Run code in the steps' places; return the steps of the report."""
    (out / gpu_report.STEPS_FOLDER).mkdir(exist_ok=True)
    check({name: [sys.executable, "-c", source] for name, source in code.items()}, {"steps": {}}, out)
    return read_report(out)[0]


def writing(out: Path, name: str, content: bytes) -> str:
    return f"open({str(step_file(out, name, 'json'))!r}, 'wb').write({content!r})"


def test_a_step_that_fails_says_why_and_keeps_its_figures(tmp_path: Path) -> None:
    failing = writing(tmp_path, "speed", b'{"texts": {}}') + "; raise SystemExit('no memory')"
    steps = run(
        tmp_path,
        speed=failing,
        load="import os; os.kill(os.getpid(), 11)",
        ceilings="import os; os.kill(os.getpid(), 9)",
    )
    assert (
        steps["ceilings"]["fault"] == "ended by SIGKILL"
        and steps["speed"]["fault"] == "ended with exit status 1"
        and steps["speed"]["log"] == ["no memory"]
    )
    assert steps["speed"]["figures"] == {"texts": {}}
    assert steps["load"]["fault"] == "ended by SIGSEGV" and "Segmentation fault" in "".join(steps["load"]["log"])
    page = (tmp_path / "gpu_check.md").read_text()
    assert "no memory" in page and "Not every step finished without a fault: speed, load, ceilings;" in page
    assert not any((tmp_path / gpu_report.STEPS_FOLDER).iterdir())  # few files can be fetched from a lent machine
    report_again(tmp_path)
    assert read_report(tmp_path)[0] == steps


@pytest.mark.parametrize("content", ['{"throughput": {"as serv', "[]", "\udcff"])
def test_a_broken_file_costs_only_its_step(content: str, tmp_path: Path) -> None:
    (tmp_path / "gpu_check.json").write_bytes(b'{"steps": {')
    broken = writing(tmp_path, "speed", content.encode(errors="surrogateescape"))
    steps = run(tmp_path, speed=broken, load=writing(tmp_path, "load", b'{"x": {"alone": {"ms": 5}}}'))
    assert steps["speed"] == {"seconds": steps["speed"]["seconds"], "fault": "left no figures that can be read",
                              "figures": {}, "log": []}  # fmt: skip
    assert steps["load"]["fault"] == "" and "| alone | 5 |" in (tmp_path / "gpu_check.md").read_text()


def test_a_report_that_cannot_be_written_is_written_later(tmp_path: Path) -> None:
    """A folder in the way stands for a disk that is full for a while."""
    full = tmp_path / "gpu_check.json.unfinished"
    fills = writing(tmp_path, "speed", b'{"x": {"y": {"ms": 5}}}') + f"; import os; os.mkdir({str(full)!r})"
    frees = writing(tmp_path, "load", b'{"x": {"z": {"ms": 6}}}') + f"; import os; os.rmdir({str(full)!r})"
    steps = run(tmp_path, speed=fills, load=frees)
    assert [step["figures"] for step in steps.values()] == [{"x": {"y": {"ms": 5}}}, {"x": {"z": {"ms": 6}}}]
    assert not any(step["fault"] for step in steps.values())


@pytest.mark.fuzz
def test_a_step_that_hangs_is_stopped_with_what_it_started_and_shows_where_it_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beats = tmp_path / "beats"
    child = f"import time\nwhile True: open({str(beats)!r}, 'a').write('.'); time.sleep(0.02)"
    hangs = f"import subprocess, sys\ndef hang(): subprocess.run([sys.executable, '-c', {child!r}])\nhang()"
    monkeypatch.setattr(gpu, "TOTAL_S", 4)
    for name, limit_s in {"kernels": 0.1, "speed": 2, "load": 2, "tests": 9}.items():
        monkeypatch.setitem(LIMITS_S, name, limit_s)
    steps = run(tmp_path, speed=hangs, load="import time; time.sleep(1)", tests="")
    assert steps["speed"]["fault"] == "did not run: no time was left"
    monkeypatch.setattr(gpu, "TOTAL_S", 5)
    steps = run(tmp_path, kernels="import time; time.sleep(1.2)", speed=hangs)
    assert steps["kernels"]["fault"] == "left no figures that can be read"  # it took time that nothing else needs
    assert steps["speed"]["fault"].startswith("was stopped after ") and steps["speed"]["seconds"] < 20
    assert "in hang" in "".join(steps["speed"]["log"])
    seen = beats.read_text()
    time.sleep(0.3)
    assert seen and beats.read_text() == seen


@pytest.mark.fuzz
def test_a_step_that_cannot_be_ended_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a driver keeps from ending is stood for by a signal that is sent later."""
    unsent: list[tuple[int, int]] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "killpg", lambda *signalled: unsent.append(signalled))
        patch.setattr(gpu, "ENDS_S", 0.1)
        patch.setattr(gpu, "TOTAL_S", 12)
        for name, limit_s in {"load": 0.1, "tests": 10}.items():
            patch.setitem(LIMITS_S, name, limit_s)
        steps = run(tmp_path, load="import signal, time; signal.signal(6, signal.SIG_IGN); time.sleep(999)", tests="")
    assert steps["load"]["fault"].startswith("was stopped after") and steps["tests"]["fault"] == ""
    os.killpg(*unsent[0])
    wait_until(lambda: not still_running(tmp_path))


def test_the_limits_fit_and_the_tests_are_those_of_the_gpu(tmp_path: Path) -> None:
    """A machine is lent for 560 s a command, of which the start and the last report take some."""
    commands = plan(Path("checkpoint"), tmp_path, smoke=False)
    assert sum(LIMITS_S.values()) <= TOTAL_S <= 530 and list(commands) == RUN_HERE
    assert list(plan(Path("c"), tmp_path, smoke=False, only="load")) == ["checkpoint", "load"]
    assert commands["merged"][-3:] == ["tests/engine/test_gpu.py", "-k", "merged"]
    tests = commands["tests"]
    assert tests.index("tests/engine/test_gpu.py") < tests.index("tests/engine/test_kernels.py")
    assert "-v" in tests and tests[-2:] == ["-k", "not (compiles or merged)"]
    for name, command in commands.items():
        assert name in TESTS or find_spec(command[2]), command


def program(folder: Path, name: str, code: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!{sys.executable}\n{code}\n")
    (folder / name).chmod(0o755)


def test_ncu_is_a_step_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "ncu", "")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    command = plan(Path("checkpoint"), tmp_path, smoke=False)["ncu"]
    assert command[0] == "ncu" and command[command.index("-m") + 1 :][:2] == ["lab.benchmarks.gpu_variants", "ncu"]
    rows = '"ID","Kernel Name"\n"0","_add_norm"'
    steps = run(tmp_path, ncu=f"print('noise'); print({rows!r})")
    assert steps["ncu"]["summary"] == rows.splitlines() and steps["ncu"]["fault"] == ""


def test_the_clocks_of_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi itself is stood for by a program that prints what it prints."""
    lines = ["0, 345, 76.10, 30, 0x0000000000000001", "97, 1980, 650.25, 60, 0x0000000000000000",
             "98, 1500, 700.00, 70, 0x0000000000000004", "51, 1700, 690.5, 71, 0x0000000000000024"]  # fmt: skip
    ready = tmp_path / "ready"
    code = f"import sys, time\nprint({chr(10).join(lines)!r}, flush=True)\nopen({str(ready)!r}, 'w')\ntime.sleep(999)"
    program(tmp_path / "bin", "nvidia-smi", code)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    waits = f"import os, time\nfor _ in range(2_000): os.path.exists({str(ready)!r}) and exit() or time.sleep(0.01)"
    steps = run(tmp_path, load=waits)
    assert steps["load"]["clocks"] == {
        "SM MHz": 1700, "least": 1500, "most W": 700, "most C": 71, "slowed by": "power 67%, heat, software 33%",
    }  # fmt: skip
    assert "| SM MHz | least |" in (tmp_path / "gpu_check.md").read_text()
    assert not any(str(tmp_path / "bin") in word for process in still_running(tmp_path) for word in process.cmdline())


@pytest.mark.parametrize("step", STEPS)
def test_a_check_that_is_killed_in_any_step_keeps_all_figures(step: str, tmp_path: Path) -> None:
    """The driver itself, with stand-ins that write a figure, and one that then hangs; it ends with the driver."""
    commands = {}
    for name in STEPS:
        content = json.dumps({"group": {"row": {f"ms of {name}": 5}}}).encode()
        code = writing(tmp_path, name, content) + ("; import time; time.sleep(999)" if name == step else "")
        commands[name] = [sys.executable, "-S", "-c", code]
    (tmp_path / gpu_report.STEPS_FOLDER).mkdir()
    driver = f"from lab.benchmarks.gpu import *; check({commands!r}, {{'steps': {{}}}}, Path({str(tmp_path)!r}))"
    interrupt(subprocess.Popen([sys.executable, "-c", driver], cwd=ROOT), tmp_path, step, sign="json")
    write_report(read_json(tmp_path / "gpu_check.json"), tmp_path)
    steps, page = read_report(tmp_path)
    done = STEPS[: STEPS.index(step) + 1]
    assert list(steps) == done and steps[step]["fault"] == gpu_report.INTERRUPTED
    assert all(steps[name]["figures"] == {"group": {"row": {f"ms of {name}": 5}}} for name in done)
    assert all(f"| ms of {name} |" in page for name in done if name in gpu_report.TITLES)


def test_the_engine_and_every_step_need_few_packages(tmp_path: Path) -> None:
    code = f"""if True:
        import sys
        sys.modules |= dict.fromkeys({others()})
        from lab.benchmarks import gpu, gpu_ceilings, gpu_decisions, gpu_rehearsal, gpu_steps, gpu_tiles, gpu_variants
        import batching.scheduler, engine.selection, engine.native.choice, lab.checkpoints.make_random
        step = gpu_steps.Step(gpu.SMALL, gpu.Path({str(tmp_path / "x.json")!r}), gpu_steps.SMOKE)
        texts = gpu_steps.mixed_sample(gpu.SMALL, 4)
        assert gpu_steps.embed_stream(step.load(), texts) > 0
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE_S)
