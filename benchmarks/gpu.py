"""Check all that only a GPU can show, in one command and under nine minutes: parity, speed, limits, load, tests.

    python -m benchmarks.gpu --out docs/benchmarks/h200             # writes h200/gpu_check.md, .json, .png and .log
    python -m benchmarks.gpu --out /tmp/smoke --smoke               # hardly anything, on any machine, in a minute

Needs torch (2.11 or newer) for CUDA, transformers, sentence-transformers, tokenizers, safetensors, numpy; pytest for
the tests, cachetools for the load, matplotlib for the plot. No network, no server. Without --checkpoint it first
writes one of the full shape with random weights. A step that fails or hangs costs only itself, and if the check is
ended halfway, `python -m benchmarks.gpu_report DIR` makes the report of what is there.
"""

import argparse
import ctypes
import importlib.util
import logging
import os
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_report
from benchmarks.gpu_parts import STEPS
from weights import SMALL

logger = logging.getLogger(__name__)

ROOT = SMALL.parent.parent

TOTAL_S = 540
LIMITS_S = {
    "checkpoint": 35, "parity": 60, "speed": 140, "kernels": 40, "ceilings": 60, "load": 45, "tests": 110, "setup": 45
}  # fmt: skip
NEEDED = ("torch", "transformers", "sentence_transformers", "tokenizers", "safetensors", "numpy", "matplotlib")
# Without these a step does not run: the package, and where to get it.
NEEDED_BY = {
    "tests": ("pytest", "pip install pytest"),
    "load": ("cachetools", "put its wheel on PYTHONPATH"),
}
TESTS = ("tests/engine/test_gpu.py", "tests/engine/test_kernels.py", "-k", "not compiles")
TEST_LIMIT_S = 60
# They need no GPU and none of the fixtures, which import sentence-transformers.
SMOKE_TESTS = ("tests/test_tasks.py", "--noconftest")
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class StepCommand:
    """A step's name, its command, and the seconds that are kept for it."""

    name: str
    command: list[str]
    limit_s: float


def is_installed(package: str) -> bool:
    """Whether a package can be imported, without doing it."""
    return importlib.util.find_spec(package) is not None


def plan(checkpoint: Path, out: Path, smoke: bool, only: str = "") -> list[StepCommand]:
    """Return the steps in their order; with `only` the first, which notes the machine, and those that it names."""
    steps = []
    for name in STEPS:
        command = [sys.executable, "-m", "benchmarks.gpu_steps", name, "--checkpoint", str(checkpoint)]
        command += ["--out", str(out / f"{name}.json"), *(["--smoke"] if smoke else [])]
        if name == "tests":
            limit = [f"--timeout={TEST_LIMIT_S}"] if is_installed("pytest_timeout") else []
            command = [sys.executable, "-m", "pytest", "-v", "-s", "-rfEs", "-p", "no:cacheprovider", *limit]
            command += SMOKE_TESTS if smoke else TESTS
        if not only or name in ("checkpoint", *only.split(",")):
            steps.append(StepCommand(name, command, LIMITS_S[name]))
    return steps


def die_with_parent() -> None:
    """Have Linux end this process when the thread that started it ends, and write no core; for `preexec_fn`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_step(step: StepCommand, out: Path, limit_s: float) -> dict[str, Any]:
    """Run a step and return its outcome. It prints to OUT/NAME.log and leaves its figures in OUT/NAME.json."""
    start = time.perf_counter()
    with (out / f"{step.name}.log").open("wb") as log:
        process = subprocess.Popen(
            step.command, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
    fault = f"was stopped after {limit_s:.0f} s"
    try:
        if code := process.wait(limit_s):
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
            fault = f"ended {how}"
        else:
            fault = ""
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # Python's fault handler prints where each thread is
        with suppress(subprocess.TimeoutExpired):
            process.wait(2)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children hold the GPU too
        process.wait()
    return {"seconds": round(time.perf_counter() - start, 1), "fault": fault}


def check(steps: list[StepCommand], results: dict[str, Any], out: Path) -> None:
    """Run the steps, writing the report anew after each. A step may use the time that those before it left."""
    deadline = time.monotonic() + TOTAL_S
    gpu_report.write_both(results, out)
    for i, step in enumerate(steps):
        package, remedy = NEEDED_BY.get(step.name, ("", ""))
        left_s = deadline - time.monotonic() - sum(later.limit_s for later in steps[i + 1 :])
        if package and not is_installed(package):
            outcome = {"seconds": 0, "fault": f"did not run: {package} is not installed; {remedy}"}
        elif left_s < 1:
            outcome = {"seconds": 0, "fault": "did not run: no time was left"}
        else:
            outcome = run_step(step, out, left_s)
        results["steps"][step.name] = gpu_report.outcome_of(out, step.name, outcome)
        gpu_report.write_both(results, out)
        gpu_report.put_away(out, step.name)
        logger.info("%s: %s", step.name, results["steps"][step.name]["fault"] or "done")


def main() -> None:
    """Exit with 1 when a step failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the report; an earlier one is replaced")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint directory; default: random weights, full shape")
    parser.add_argument("--only", default="", help="only these steps, such as tests,speed")
    parser.add_argument("--smoke", action="store_true", help="the small checkpoint, hardly any texts, on any machine")
    args = parser.parse_args()
    if args.checkpoint and not args.checkpoint.is_dir():
        parser.error(f"there is no directory {args.checkpoint}")
    out = args.out.resolve()
    gpu_report.make_room(out)
    results = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *sys.argv[1:]]),
        "missing": [name for name in NEEDED if not is_installed(name)], "smoke": args.smoke, "steps": {},
    }  # fmt: skip
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    given = args.checkpoint or (SMALL if args.smoke else None)
    with nullcontext("") if given else tempfile.TemporaryDirectory(prefix="embeddinggemma-random-") as folder:
        checkpoint = given or Path(folder) / "checkpoint"
        try:
            check(plan(checkpoint.resolve(), out, args.smoke, args.only), results, out)
        finally:
            gpu_report.rebuild(out)
    logger.info("\n%s", (out / "gpu_check.md").read_text(encoding="utf-8"))
    sys.exit(any(step["fault"] for step in results["steps"].values()))


if __name__ == "__main__":
    main()
