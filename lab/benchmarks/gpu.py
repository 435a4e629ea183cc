"""Check everything that only a GPU can show, in one command and nine minutes.

    python -m lab.benchmarks.gpu --out docs/benchmarks/h200             # writes gpu_check.md, .json and a plot there
    python -m lab.benchmarks.gpu --out docs/benchmarks/h200 --report    # makes the report again, also of half a run
    python -m lab.benchmarks.gpu --out /tmp/smoke --smoke               # hardly anything, on any machine, in a minute

Needs torch (2.11 or newer) for CUDA, triton, transformers, sentence-transformers and tokenizers; pytest for the tests,
cachetools for the load, matplotlib for the plot, nvidia-smi for the clocks, ncu for its step. No network, no server.
Without --checkpoint it first writes one of the full shape with random weights. A step that fails or hangs costs only
itself.
"""

import argparse
import ctypes
import logging
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from lab.benchmarks.gpu_figures import Results
from lab.benchmarks.gpu_report import LIMITS_S, STEPS_FOLDER, step_file, write_report
from lab.report import read_json
from weights import SMALL

logger = logging.getLogger(__name__)

ROOT = SMALL.parent.parent

TOTAL_S = 530
TESTS = {
    "merged": ("tests/engine/test_gpu.py", "-k", "merged"),
    "tests": ("tests/engine/test_gpu.py", "tests/engine/test_kernels.py", "-k", "not (compiles or merged)"),
}
# They need no GPU and none of the fixtures, which import sentence-transformers.
SMOKE_TESTS = ("tests/test_tasks.py", "--noconftest")
MODULES = {"ncu": "variants", "workspace": "variants", "kernels": "ceilings"}
MODULES |= {name: name for name in ("rehearsal", "variants", "tiles", "ceilings")}
# Two layers' kernels and more, of one pass.
NCU = (
    "ncu", "--csv", "--page", "raw", "--profile-from-start", "off", "--clock-control", "none", "--launch-count", "24",
    "--metrics", "gpu__time_duration.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed,"
    "dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active",
)  # fmt: skip
CLOCKS = (
    "nvidia-smi", "--id=0", "--loop-ms=200", "--format=csv,noheader,nounits",
    "--query-gpu=utilization.gpu,clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active",
)  # fmt: skip
ENDS_S = 10
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def plan(checkpoint: Path, out: Path, smoke: bool, only: str = "") -> dict[str, list[str]]:
    """Return the steps' commands; with `only` those of the steps it names and of the first, which notes the machine."""
    commands = {}
    for name in LIMITS_S:
        command = [sys.executable, "-m", f"lab.benchmarks.gpu_{MODULES.get(name, 'steps')}", name]
        command += ["--checkpoint", str(checkpoint), "--out", str(step_file(out, name, "json"))]
        command += ["--smoke"] if smoke else []
        if name in TESTS:
            command = [sys.executable, "-m", "pytest", "-v", "-s", "-rfEs", "-p", "no:cacheprovider"]
            command += SMOKE_TESTS if smoke else TESTS[name]
        elif name == "ncu":
            if not shutil.which("ncu"):
                continue
            command = [*NCU, *command]
        if not only or name in ("checkpoint", *only.split(",")):
            commands[name] = command
    return commands


def die_with_parent() -> None:
    """Have Linux end this process when the thread that started it ends, and write no core; for `preexec_fn`."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if LIBC:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def running(command: Sequence[str], output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command that writes to a file; kill it at the end, with its children, as they hold the GPU too."""
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):  # a driver may keep it from ending
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(ENDS_S)


def run_step(name: str, command: Sequence[str], out: Path, limit_s: float) -> dict[str, Any]:
    """Run a step, beside it nvidia-smi where there is one, and return its outcome."""
    start = time.perf_counter()
    clocks = running(CLOCKS, step_file(out, name, "csv")) if shutil.which(CLOCKS[0]) else nullcontext()
    with clocks, running(command, step_file(out, name, "log")) as process:
        fault = f"was stopped after {limit_s:.0f} s"
        try:
            code = process.wait(limit_s)
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
            fault = f"ended {how}" if code else ""
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)  # Python's fault handler prints where each thread is
            with suppress(subprocess.TimeoutExpired):
                process.wait(2)
    return {"seconds": round(time.perf_counter() - start, 1), "fault": fault}


def check(commands: dict[str, list[str]], results: Results, out: Path) -> None:
    """Run the steps, writing the report anew after each. A step may use the time that those before it left."""
    deadline = time.monotonic() + TOTAL_S
    write_report(results, out)
    names = list(commands)
    for i, name in enumerate(names):
        left_s = deadline - time.monotonic() - sum(LIMITS_S[later] for later in names[i + 1 :])
        no_time = {"seconds": 0, "fault": "did not run: no time was left"}
        results["steps"][name] = no_time if left_s < 1 else run_step(name, commands[name], out, left_s)
        with suppress(OSError):  # of a full disk: what the steps have left is read again after the next one
            write_report(results, out)
        logger.info("%s: %s", name, results["steps"][name]["fault"] or "done")


def main() -> None:
    """Exit with 1 when a step failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the report; an earlier one is replaced")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint directory; default: random weights, full shape")
    parser.add_argument("--only", default="", help="only these steps, such as tests,speed")
    parser.add_argument("--smoke", action="store_true", help="the small checkpoint, hardly any texts, on any machine")
    parser.add_argument("--report", action="store_true", help="only make the report of what is in the folder")
    args = parser.parse_args()
    if args.checkpoint and not args.checkpoint.is_dir():
        parser.error(f"there is no directory {args.checkpoint}")
    out = args.out.resolve()
    if args.report:
        write_report(read_json(out / "gpu_check.json"), out, plot=True)
        return
    shutil.rmtree(out / STEPS_FOLDER, ignore_errors=True)
    (out / STEPS_FOLDER).mkdir(parents=True)
    command = shlex.join(["python", "-m", "lab.benchmarks.gpu", *sys.argv[1:]])
    results: Results = {"command": command, "smoke": args.smoke, "steps": {}}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    with tempfile.TemporaryDirectory(prefix="embeddinggemma-random-") as folder:
        checkpoint = args.checkpoint or (SMALL if args.smoke else Path(folder) / "checkpoint")
        try:
            check(plan(checkpoint.resolve(), out, args.smoke, args.only), results, out)
        finally:
            write_report(results, out, plot=True)
    logger.info("\n%s", (out / "gpu_check.md").read_text(encoding="utf-8"))
    sys.exit(any(step["fault"] for step in results["steps"].values()))


if __name__ == "__main__":
    main()
