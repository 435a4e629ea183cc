"""The measurements of `benchmarks.gpu`, each a step in a process of its own:

    python -m benchmarks.gpu_steps speed --checkpoint DIR --out speed.json

A step writes its file anew after every part. A part that raises is written with its reason, and costs only itself.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.embedders import Embed, embedder, load_reference
from benchmarks.gpu import die_with_parent
from benchmarks.gpu_ceilings import measure_ceilings
from benchmarks.gpu_engines import (
    ON_GPU,
    VARIANTS,
    Texts,
    embed_overlapped,
    load,
    load_variant,
    make_texts,
    mixed_texts,
)
from benchmarks.gpu_load import measure_load
from benchmarks.gpu_page import COSINES, MIXED, REFERENCE, REFERENCE_FLOAT32, TIME_BY_KIND
from benchmarks.gpu_parts import FULL, SMOKE, Step
from benchmarks.gpu_speed import measure_speed
from benchmarks.number_formats import errors
from benchmarks.time_shares import by_category, longest_kernels, profiled
from checkpoints.make_random import make
from engine.kernels import PLAIN
from engine.model import FLOAT32
from engine.packed import PackedEngine

PLAIN_FLOAT32 = "packed, float32, PyTorch's kernels"


def facts() -> dict[str, Any]:
    """Return machine and versions."""
    known = report.machine() | report.versions()
    if ON_GPU:
        known["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
        known["cuda"] = torch.version.cuda
    return known


def measure_checkpoint(step: Step) -> None:
    """Note the machine, and write a checkpoint of the full shape with random weights where there is none."""
    step.part(("machine",), facts)
    if not step.checkpoint.exists():
        step.attempt(("checkpoint",), partial(make, step.checkpoint))


def measure_parity(step: Step) -> None:
    """Measure 1 - cosine against float32 on the same device, and how far other texts in a batch change a vector."""
    groups, checkpoint = step.workload.parity_lengths, step.checkpoint
    texts = make_texts(checkpoint, [n for lengths in groups.values() for n in lengths for _ in range(2)], seed=4).texts
    group_of = np.repeat(list(groups), [2 * len(lengths) for lengths in groups.values()])
    plain: dict[str, Any] = {"numbers": FLOAT32, "kernels": PLAIN, "graphs": False}
    loaders: dict[str, Callable[[], Embed]] = {
        PLAIN_FLOAT32: lambda: embedder(PackedEngine(checkpoint, **plain)),
        REFERENCE_FLOAT32: lambda: load_reference(checkpoint, torch.float32)[0],
        f"{REFERENCE}, bfloat16": lambda: load_reference(checkpoint, torch.bfloat16)[0],
    }
    loaders |= {name: partial(lambda variant: embedder(load_variant(checkpoint, variant)), name) for name in VARIANTS}
    exact: dict[str, np.ndarray] = {}
    for name, load_embed in loaders.items():
        vectors = step.attempt(("vectors", name), partial(in_both_companies, load_embed, texts))
        if vectors is None:
            continue
        if name in (PLAIN_FLOAT32, REFERENCE_FLOAT32):
            exact[name] = vectors["alone"]
        for against, expected in exact.items():
            for company, rows in vectors.items():
                path = (f"{COSINES}{against}", f"{name}, {company}")
                step.part(path, partial(cosine_errors, rows, expected, group_of))
        change = float(np.abs(vectors["alone"] - vectors["together"]).max())
        step.part(("what other texts change", name), partial(dict, {"most in a component of a unit vector": change}))


def in_both_companies(load_embed: Callable[[], Embed], texts: list[str]) -> dict[str, np.ndarray]:
    """Return the texts' unit vectors, each embedded alone, and all in one call."""
    embed = load_embed()
    return {"alone": np.concatenate([embed([text], 1) for text in texts]), "together": embed(texts, len(texts))}


def cosine_errors(rows: np.ndarray, expected: np.ndarray, group_of: np.ndarray) -> dict[str, dict[str, float]]:
    """Return the median and the worst 1 - cosine of each group of lengths."""
    cosines = errors(rows, expected)[0]
    by_group = {group: cosines[group_of == group] for group in dict.fromkeys(group_of.tolist())}
    return {name: {"median": float(np.median(of)), "worst": float(of.max())} for name, of in by_group.items()}


def measure_kernels(step: Step) -> None:
    """Measure the time by kind of work and by kernel, of mixed texts and of single ones."""
    if (engine := load(step)) is None:
        return
    embed = embedder(engine)
    mixed = mixed_texts(step.checkpoint, step.workload.some_texts // 2)
    singles = make_texts(step.checkpoint, [32] * max(2, step.workload.repeats // 4), seed=3)
    runs: dict[str, tuple[Texts, Callable[[], Any]]] = {
        MIXED: (mixed, lambda: embed_overlapped(engine, mixed.texts)),
        "single texts of 32 tokens": (singles, lambda: [embed([text], 1) for text in singles.texts]),
    }
    for name, (texts, run) in runs.items():
        step.attempt(("warm-up", name), run)
        if trace := step.attempt(("profile", name), partial(profiled, run)):
            in_ms = {f"{kind} ms": seconds * 1e3 for kind, seconds in by_category(*trace).items()}
            step.part((TIME_BY_KIND, name), partial(dict, texts.size | in_ms))
            step.part((f"kernels, {name}",), partial(longest_kernels, trace[0]))


SETUP = """
import json, sys, time
start = time.perf_counter()
from pathlib import Path
from engine.packed import PackedEngine
imported = time.perf_counter()
engine = PackedEngine(Path(sys.argv[1]))
loaded = time.perf_counter()
engine.embed([text.ids for text in engine.tokenizer.encode([""], ["Which planet is known as the Red Planet?"])])
now = time.perf_counter()
print(json.dumps({"import s": imported - start, "load s": loaded - imported, "first vector s": now - loaded}))
"""


def measure_setup(step: Step) -> None:
    """Measure process start to first vector: with nothing compiled yet, then as on a later start."""
    with tempfile.TemporaryDirectory() as cache:
        for name in ("nothing compiled yet", "kernels compiled before"):
            step.part(("process start to first vector", name), partial(set_up, step.checkpoint, cache))


def set_up(checkpoint: Path, cache: str) -> dict[str, float]:
    """Return the seconds of a new process's stages. Raises RuntimeError with what it printed if it fails."""
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-c", SETUP, str(checkpoint)], capture_output=True, text=True, preexec_fn=die_with_parent,
        env=os.environ | {"TRITON_CACHE_DIR": cache},
    )  # fmt: skip
    if run.returncode:
        raise RuntimeError(f"the process ended with exit status {run.returncode}:\n{run.stderr[-1_500:]}")
    return json.loads(run.stdout.splitlines()[-1]) | {"process s": time.perf_counter() - start}


MEASURES: dict[str, Callable[[Step], None]] = {
    "checkpoint": measure_checkpoint, "parity": measure_parity, "speed": measure_speed, "kernels": measure_kernels,
    "ceilings": measure_ceilings, "load": measure_load, "setup": measure_setup,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=MEASURES)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="hardly anything, to see that it runs")
    args = parser.parse_args()
    MEASURES[args.step](Step(args.checkpoint, args.out, SMOKE if args.smoke else FULL))


if __name__ == "__main__":
    main()
