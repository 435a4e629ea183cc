"""Step of `lab.benchmarks.gpu`: all that no GPU has run yet, each in a process of its own, all at once.

A kernel that faults or hangs then costs only itself, and what is compiled here is there for the steps that follow.
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from engine.configs import read_architecture
from engine.contract import TokenIds
from engine.kernels import PLAIN
from engine.model import FLOAT32
from engine.packed import PackedEngine
from lab.benchmarks.embedders import errors
from lab.benchmarks.gpu import die_with_parent
from lab.benchmarks.gpu_figures import ALONE, OF_ATTENTION, SERVED
from lab.benchmarks.gpu_steps import ON_GPU, SHORT, SMOKE, Step, main
from lab.benchmarks.gpu_tiles import Figures, groups, patched
from lab.benchmarks.gpu_variants import load, variants
from lab.benchmarks.texts import random_token_ids
from weights import SMALL

ROOT = SMALL.parent.parent
LENGTHS = (2, 3, 16, 37, 64, 65, 130, 257, 513, 1_021, 2_048)
# Enough for the texts, of which each is in a graph's pass by itself or with others.
FEW_GRAPHS = {"engine.graphs.TOKENS": (32, 48, 64, 96, 192, 384, 768, 1_536, 2_048, 16_384)}
# A kernel that does not wait for another is right mostly, so a short text is read often.
REPEATS, COPIES = (200, 4) if ON_GPU else (2, 1)


def names() -> list[str]:
    """Return what is tried: the engine as served, variants of its kernels, every tile; the first of each on a CPU."""
    kinds = [[SERVED, *(name for name, variant in variants().items() if variant.rehearsed)]]
    kinds += [list(group.tiles) for title, group in groups().items() if ON_GPU or title != OF_ATTENTION]
    return [name for kind in kinds for name in (kind if ON_GPU else kind[:1])]


def error_of(step: Step, name: str) -> Figures:
    """Return the errors of a variant or of a tile."""
    for group in groups().values():
        if name in group.tiles:
            with patched(group.tiles[name]):
                return group.error(group.merged, read_architecture(step.checkpoint))
    settings = {} if name == SERVED else variants()[name].settings
    exact = PackedEngine(step.checkpoint, numbers=FLOAT32, kernels=PLAIN, graphs=False)
    return errors_of_vectors(load(step, settings | FEW_GRAPHS), exact)


def errors_of_vectors(engine: PackedEngine, exact: PackedEngine) -> Figures:
    """Return how far vectors are off those of `exact`, of texts together and alone, and how often a text's changes."""
    texts: list[TokenIds] = [*random_token_ids(exact._architecture.vocab_size, LENGTHS, COPIES)]
    short = next(ids for ids in texts if len(ids) == SHORT)
    alone = np.concatenate([engine.embed([ids]) for ids in texts[::COPIES]])
    expected = exact.embed(texts)
    cosines, _ = errors(np.concatenate([engine.embed(texts), alone]), np.concatenate([expected, expected[::COPIES]]))
    first = engine.embed([short])
    changed = sum(not np.array_equal(engine.embed([short]), first) for _ in range(REPEATS))
    return {"1 - cosine, median": float(np.median(cosines)), "worst": float(cosines.max()), "changed": float(changed)}


def run_alone(step: Step, name: str) -> Figures:
    """Return the errors from a process of their own. Raises RuntimeError, with its last lines, if it fails."""
    command = [sys.executable, "-m", "lab.benchmarks.gpu_rehearsal", "alone", "--name", name]
    command += ["--checkpoint", str(step.checkpoint), "--out", str(step.out)]
    command += ["--smoke"] if step.workload is SMOKE else []
    start = time.perf_counter()
    try:
        run = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=step.workload.alone_s,
            preexec_fn=die_with_parent,
        )  # fmt: skip
    except subprocess.TimeoutExpired as hung:
        raise RuntimeError(f"did not end in {step.workload.alone_s:g} s") from hung
    if run.returncode:
        raise RuntimeError(f"ended with status {run.returncode}: {run.stderr[-1_000:]}")
    figures: Figures = json.loads(run.stdout.splitlines()[-1])
    return figures | {"s": time.perf_counter() - start}


def measure_rehearsal(step: Step) -> None:
    """Run everything by itself, and write each outcome in turn."""
    tried = names()
    with ThreadPoolExecutor(len(tried)) as pool:  # all, or one that hangs would take the time of another
        outcomes = {name: pool.submit(run_alone, step, name) for name in tried}
        for name, outcome in outcomes.items():
            step.part((ALONE, name), outcome.result)


def measure_alone(step: Step) -> None:
    """Print the errors of the one that the command line names."""
    sys.stdout.write(json.dumps(error_of(step, step.name)) + "\n")


MEASURES = {"rehearsal": measure_rehearsal, "alone": measure_alone}

if __name__ == "__main__":
    main(MEASURES)
