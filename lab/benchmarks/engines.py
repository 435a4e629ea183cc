"""Measure engines side by side on this machine: the one source of claims about speed.

    python -m lab.checkpoints.make_random /tmp/random --tokenizer tokenizer.json
    python -m lab.benchmarks.engines --checkpoint /tmp/random --quick --rounds 5 --out docs/benchmarks/cpu
    python -m lab.benchmarks.engines --quick                      # the small checkpoint, two minutes
    python -m lab.benchmarks.engines --checkpoint /tmp/random --engines packed packed-float32 plain --only mixed
    GGUF=/tmp/random.gguf python -m lab.benchmarks.engines --checkpoint /tmp/random --engines packed openvino llama-cpp

Every engine runs in a process of its own. They take turns on the same texts, round by round, so a busy machine slows
all of them. Prints tables of speed and of errors; `--out NAME` writes NAME.json, NAME.md and NAME.png.
"""

import argparse
import logging
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

from engine.configs import read_architecture
from engine.tokenizer import Tokenizer
from lab import report
from lab.benchmarks import engines_report, peers
from lab.benchmarks.embedders import LOADERS, Loaded, errors
from lab.benchmarks.peers import BATCHED
from lab.benchmarks.texts import MIXED, Scenario, make_scenarios
from weights import SMALL

logger = logging.getLogger(__name__)

ENGINES = LOADERS | peers.LOADERS
DEFAULT = ("packed", "plain", "reference", "reference-bfloat16")
DEFAULT_BATCH_SIZE = 32  # sentence-transformers' own
MOST_EXACT = ("plain", "packed-float32")
"""Errors are measured against the first of these that runs, or else against the first engine."""

# A program's idle threads wait for work for some milliseconds, in which they take the processor from the next engine.
SETTLE_S = 0.05

Args = ParamSpec("Args")
Answer = TypeVar("Answer")

_loaded: Loaded


class EngineProcess:
    """An engine in a process of its own, in which functions of this module run."""

    def __init__(self, engine: str, checkpoint: Path) -> None:
        """Start the process and wait for its first vector; `load_s` counts from before it existed."""
        start = time.perf_counter()
        self.engine = engine
        self._executor = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        self.description = self.run(load, engine, checkpoint)
        self.load_s = time.perf_counter() - start

    def run(self, function: Callable[Args, Answer], *args: Args.args, **kwargs: Args.kwargs) -> Answer:
        """Call a function in the process and return its result, or raise its error."""
        return self._executor.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """End the process."""
        self._executor.shutdown()


def load(engine: str, checkpoint: Path) -> str:
    """Load the engine, embed one text and return the engine's description."""
    global _loaded
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries draw progress bars
    _loaded = ENGINES[engine](checkpoint)
    _loaded.embed(["Which planet is known as the Red Planet?"], 1)
    return _loaded.description


def embed_s(texts: list[str], batch_size: int) -> float:
    """Embed the texts and return the seconds that it took."""
    start = time.perf_counter()
    _loaded.embed(texts, batch_size)
    return time.perf_counter() - start


def vectors(texts: list[str], batch_size: int) -> np.ndarray:
    """Return the texts' unit vectors, float32 [n, 768]."""
    return _loaded.embed(texts, batch_size)


def peak_memory() -> dict[str, int]:
    """Return the most memory that the process has held, in bytes, on host and GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"memory_bytes": host, "gpu_memory_bytes": gpu}


def choose_batch_size(process: EngineProcess, scenario: Scenario, sizes: list[int]) -> int:
    """Return the fastest batch size, after a run with each; the default for one call and for one text."""
    if scenario.kind != "throughput" or process.engine not in BATCHED:
        process.run(embed_s, scenario.texts, DEFAULT_BATCH_SIZE)
        return DEFAULT_BATCH_SIZE
    useful = [size for size in sizes if size < len(scenario.texts)]
    useful += sizes[len(useful) : len(useful) + 1]  # the first that holds all texts
    trials = {size: process.run(embed_s, scenario.texts, size) for size in useful}
    return min(trials, key=trials.__getitem__)


def measure(processes: list[EngineProcess], scenario: Scenario, sizes: list[int], rounds: int) -> None:
    """Fill in the scenario's batch sizes and seconds. Each engine goes first in turn."""
    for process in processes:
        scenario.batch_size[process.engine] = choose_batch_size(process, scenario, sizes)
        scenario.seconds[process.engine] = []
    for turn in range(rounds):
        first = turn % len(processes)
        for process in processes[first:] + processes[:first]:
            time.sleep(SETTLE_S)
            taken_s = process.run(embed_s, scenario.texts, scenario.batch_size[process.engine])
            scenario.seconds[process.engine].append(taken_s)
    logger.info("%s: done", scenario.name)


def figures(scenario: Scenario) -> dict[str, Any]:
    """Return a scenario's figures; `speedup` is the median over the rounds of an engine's time / the first one's."""
    count, tokens = len(scenario.texts), sum(scenario.token_counts)
    by_engine = {
        engine: {
            "batch_size": scenario.batch_size[engine],
            "p50_ms": median(seconds) * 1e3,
            "p99_ms": float(np.percentile(seconds, 99)) * 1e3,
            "tokens_per_s": tokens / median(seconds),
            "texts_per_s": count / median(seconds),
        }
        for engine, seconds in scenario.seconds.items()
    }
    first, *others = scenario.seconds
    ratios = {engine: np.divide(scenario.seconds[engine], scenario.seconds[first]) for engine in others}
    description = {"name": scenario.name, "kind": scenario.kind, "texts": count, "tokens": tokens}
    return description | {"engines": by_engine, "speedup": {name: float(np.median(of)) for name, of in ratios.items()}}


def measure_errors(processes: list[EngineProcess], scenario: Scenario) -> dict[str, Any]:
    """Return the median and the worst 1 - cosine of each engine's vectors, and against which engine's."""
    rows = {process.engine: process.run(vectors, scenario.texts, DEFAULT_BATCH_SIZE) for process in processes}
    exact = next((engine for engine in MOST_EXACT if engine in rows), processes[0].engine)
    of_engines = {}
    for engine in rows:
        cosines, _ = errors(rows[engine], rows[exact])
        of_engines[engine] = {"median": float(np.median(cosines)), "worst": float(cosines.max())}
    return {"against": exact, "texts": scenario.name, "engines": of_engines}


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the results, which OUT.json holds."""
    processes = [EngineProcess(engine, args.checkpoint) for engine in args.engines]
    all_scenarios = make_scenarios(Tokenizer(args.checkpoint), args.quick)
    scenarios = [scenario for scenario in all_scenarios if args.only in scenario.name]
    for scenario in scenarios:
        measure(processes, scenario, args.batch_sizes, args.repeats if scenario.kind == "latency" else args.rounds)
    results = summary(args.checkpoint, processes, scenarios)
    results["errors"] = measure_errors(processes, next(s for s in all_scenarios if s.name == MIXED))
    for process in processes:
        process.close()
    return results


def summary(checkpoint: Path, processes: list[EngineProcess], scenarios: list[Scenario]) -> dict[str, Any]:
    """Return machine, versions, architecture and engines, and the figures of what was measured."""
    a = read_architecture(checkpoint)
    shape = {"layers": len(a.windows), "hidden": a.hidden, "intermediate": a.intermediate, "vocab_size": a.vocab_size}
    costs = {
        process.engine: {"description": process.description, "load_s": process.load_s, **process.run(peak_memory)}
        for process in processes
    }
    facts = {"machine": report.machine(), "versions": report.versions(), "architecture": shape}
    return {**facts, "engines": costs, "scenarios": [figures(scenario) for scenario in scenarios]}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=SMALL)
    parser.add_argument(
        "--engines", nargs="+", choices=ENGINES, default=DEFAULT, help="the first is compared with the others"
    )
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.png")
    parser.add_argument("--quick", action="store_true", help="fewer texts and rounds")
    parser.add_argument("--only", default="", help="only the sets of texts whose name holds this, such as mixed")
    parser.add_argument("--rounds", type=int, help="timed rounds of a scenario; default 7, quick 3")
    parser.add_argument("--repeats", type=int, help="times that one text is embedded; default 100, quick 20")
    sizes = f"tried for {' and '.join(BATCHED)}"
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[4, 8, 16, 32, 64, 128, 256], help=sizes)
    args = parser.parse_args()
    if lacking := [reason for engine in args.engines if (reason := peers.missing(engine))]:
        parser.error("--engines: " + "; ".join(lacking))
    args.rounds = args.rounds or (3 if args.quick else 7)
    args.repeats = args.repeats or (20 if args.quick else 100)
    results = run(args)
    logger.info("\n%s", engines_report.markdown(results))
    if args.out:
        engines_report.write(results, args.out)


if __name__ == "__main__":
    main()
