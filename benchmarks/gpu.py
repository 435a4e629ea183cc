"""Check all that only a GPU can show, in one command and under eight minutes: tests, parity, speed, where time goes.

    python -m benchmarks.gpu --out docs/benchmarks/h200             # writes h200/gpu_check.md and .json
    python -m benchmarks.gpu --out /tmp/smoke --smoke               # hardly anything, on any machine, in seconds

Needs torch (2.11 or newer) for CUDA, transformers, sentence-transformers, tokenizers, safetensors, huggingface_hub,
numpy and, for the tests, pytest; no network, no server. Without --checkpoint it first writes one of the full shape
with random weights. Each step is a process with a time limit: if it fails or hangs, the others lose nothing.
"""

import argparse
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import gpu_report
from weights import SMALL

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent

TOTAL_S = 470
NEEDED = (
    "torch", "transformers", "sentence_transformers", "tokenizers", "safetensors", "huggingface_hub", "numpy", "pytest"
)  # fmt: skip
TESTS = ("tests/engine/test_gpu.py", "tests/engine/test_kernels.py")
# They need no GPU and none of the fixtures, which import sentence-transformers.
SMOKE_TESTS = ("tests/test_tasks.py", "--noconftest")


@dataclass(frozen=True, slots=True)
class StepCommand:
    """A step's name, its command, and the seconds it may take."""

    name: str
    command: list[str]
    limit_s: float


def plan(checkpoint: Path, make_checkpoint: bool, out: Path, smoke: bool) -> list[StepCommand]:
    """Return the steps in their order; the first writes the checkpoint if none is given."""
    python = [sys.executable, "-m"]
    steps = []
    if make_checkpoint:
        steps.append(StepCommand("checkpoint", [*python, "checkpoints.make_random", str(checkpoint)], 60))
    tests = SMOKE_TESTS if smoke else TESTS
    steps.append(StepCommand("tests", [*python, "pytest", "-q", "-rA", "-p", "no:cacheprovider", *tests], 150))
    for name, limit_s in (("speed", 120), ("setup", 45), ("parity", 45), ("shares", 30)):
        command = [*python, "benchmarks.gpu_steps", name, "--checkpoint", str(checkpoint)]
        command += ["--out", str(out / f"{name}.json"), *(["--smoke"] if smoke else [])]
        steps.append(StepCommand(name, command, limit_s))
    return steps


def run_step(step: StepCommand, out: Path, limit_s: float) -> dict[str, Any]:
    """Run a step and return its outcome. It prints to OUT/NAME.log and leaves its figures in OUT/NAME.json."""
    log, figures = out / f"{step.name}.log", out / f"{step.name}.json"
    figures.unlink(missing_ok=True)
    start = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit_s)
            fault = f"ended with exit status {code}" if code else ""
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children hold the GPU too
            process.wait()
            fault = f"was stopped after {limit_s:.0f} s"
    result: dict[str, Any] = {"seconds": round(time.perf_counter() - start, 1), "fault": fault}
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if fault:
        result["log"] = lines[-30:]
    if step.name == "tests":
        result["summary"] = gpu_report.test_summary(lines)
    if figures.exists():
        result["figures"] = json.loads(figures.read_text(encoding="utf-8"))
        figures.unlink()
    return result


def check(args: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """Run every step, writing the report anew after each."""
    deadline = time.monotonic() + TOTAL_S
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    results: dict[str, Any] = {"facts": gpu_report.facts(), "missing": missing, "smoke": args.smoke, "steps": {}}
    for step in plan(checkpoint, args.checkpoint is None and not args.smoke, args.out, args.smoke):
        if args.only and step.name not in args.only.split(",") and step.name != "checkpoint":
            continue
        left_s = deadline - time.monotonic()
        if step.name == "tests" and "pytest" in missing:
            outcome = {"seconds": 0, "fault": "did not run: pytest is not installed; pip install pytest"}
        elif left_s < 5:
            outcome = {"seconds": 0, "fault": f"did not run: {TOTAL_S} s had passed"}
        else:
            outcome = run_step(step, args.out, min(step.limit_s, left_s))
        results["steps"][step.name] = outcome
        gpu_report.write(results, args.out)
        logger.info("%s: %s", step.name, outcome["fault"] or "done")
    return results


def main() -> None:
    """Exit with 1 when a step failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the report and the steps' logs")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint directory; default: random weights, full shape")
    parser.add_argument("--only", default="", help="only these steps, such as tests,speed")
    parser.add_argument(
        "--smoke", action="store_true", help="the small checkpoint and hardly any texts, on any machine"
    )
    args = parser.parse_args()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="embeddinggemma-random-") as folder:
        checkpoint = args.checkpoint or (SMALL if args.smoke else Path(folder) / "checkpoint")
        results = check(args, checkpoint.resolve())
    logger.info("\n%s", (args.out / "gpu_check.md").read_text(encoding="utf-8"))
    sys.exit(any(step["fault"] for step in results["steps"].values()))


if __name__ == "__main__":
    main()
