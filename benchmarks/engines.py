"""Measure engines side by side on this machine: the one source of claims about speed.

    python -m checkpoints.make_random /tmp/random --tokenizer tokenizer.json
    python -m benchmarks.engines --checkpoint /tmp/random --quick --rounds 5 --out docs/benchmarks/cpu
    python -m benchmarks.engines --quick                      # the small checkpoint, two minutes
    python -m benchmarks.engines --checkpoint /tmp/random --engines packed,packed-float32,plain --only mixed
    pip install openvino llama-cpp-python                     # optional peers: benchmarks/peers.py
    GGUF=/tmp/random.gguf python -m benchmarks.engines --checkpoint /tmp/random --engines packed,openvino,llama-cpp

Every engine runs in a process of its own. They take turns on the same texts, round by round, so a busy machine slows
all of them. Prints tables of speed, of errors and, for the genuine shape, of what the packed engine should reach;
`--out NAME` writes NAME.json, NAME.md and NAME.png.
"""

import argparse
import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from benchmarks import engines_report, report, worker
from benchmarks.loaders import BATCHED, DEFAULT, PEERS, engine_names
from benchmarks.number_formats import errors
from benchmarks.scenarios import MIXED, Scenario, figures, make_scenarios
from engine.checkpoint import read_architecture
from engine.tokenizer import Tokenizer
from weights import SMALL

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 32  # sentence-transformers' own
MOST_EXACT = ("plain", "packed-float32")
"""Errors are measured against the first of these that runs, or else against the first engine."""

Args = ParamSpec("Args")
Answer = TypeVar("Answer")


class EngineProcess:
    """An engine in a process of its own."""

    def __init__(self, engine: str, checkpoint: Path) -> None:
        """Start the process and wait for its first vector; `load_s` counts from before it existed."""
        start = time.perf_counter()
        self.engine = engine
        self._executor = ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn"))
        self.description = self.run(worker.load, engine, checkpoint)
        self.load_s = time.perf_counter() - start

    def run(self, function: Callable[Args, Answer], *args: Args.args, **kwargs: Args.kwargs) -> Answer:
        """Call a function of `benchmarks.worker` in the process and return its result, or raise its error."""
        return self._executor.submit(function, *args, **kwargs).result()

    def close(self) -> None:
        """End the process."""
        self._executor.shutdown()


def choose_batch_size(process: EngineProcess, scenario: Scenario, sizes: list[int]) -> int:
    """Return the engine's fastest batch size for these texts; in one call and for one text the default.

    Tries each size once, which also warms up, but peers twice, as OpenVINO prepares for each new shape.
    """
    if scenario.kind != "throughput" or process.engine not in BATCHED:
        process.run(worker.embed_s, scenario.texts, DEFAULT_BATCH_SIZE)
        return DEFAULT_BATCH_SIZE
    useful = [size for size in sizes if size < len(scenario.texts)]
    useful += sizes[len(useful) : len(useful) + 1]  # the first that holds all texts
    tries = range(2 if process.engine in PEERS else 1)
    trials = {size: min(process.run(worker.embed_s, scenario.texts, size) for _ in tries) for size in useful}
    return min(trials, key=trials.__getitem__)


def measure(processes: list[EngineProcess], scenario: Scenario, sizes: list[int], rounds: int) -> None:
    """Fill in the scenario's batch sizes and seconds. Each engine goes first in turn."""
    for process in processes:
        scenario.batch_size[process.engine] = choose_batch_size(process, scenario, sizes)
        scenario.seconds[process.engine] = []
    for turn in range(rounds):
        first = turn % len(processes)
        for process in processes[first:] + processes[:first]:
            taken_s = process.run(worker.embed_s, scenario.texts, scenario.batch_size[process.engine])
            scenario.seconds[process.engine].append(taken_s)
    logger.info("%s: done", scenario.name)


def measure_errors(processes: list[EngineProcess], scenario: Scenario) -> dict[str, Any]:
    """Return the median and the worst 1 - cosine of each engine's vectors, and against which engine's."""
    vectors = {
        process.engine: process.run(
            worker.vectors, scenario.texts, scenario.batch_size.get(process.engine, DEFAULT_BATCH_SIZE)
        )
        for process in processes
    }
    exact = next((engine for engine in MOST_EXACT if engine in vectors), processes[0].engine)
    of_engines = {}
    for engine in vectors:
        cosines, _ = errors(vectors[engine], vectors[exact])
        of_engines[engine] = {"median": float(np.median(cosines)), "worst": float(cosines.max())}
    return {"against": exact, "texts": scenario.name, "engines": of_engines}


def measure_shares(processes: list[EngineProcess], scenario: Scenario) -> dict[str, dict[str, float]]:
    """Return the seconds by category of each engine that computes with torch, by torch's profiler."""
    return {
        process.engine: process.run(worker.profile, scenario.texts, scenario.batch_size[process.engine])
        for process in processes
        if process.engine not in PEERS
    }


def measure_loads(engines: list[str], checkpoint: Path, loads: int) -> dict[str, list[float]]:
    """Return the seconds that each engine takes from the start of its process to its first vector."""
    seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(loads):
        for engine in engines:
            process = EngineProcess(engine, checkpoint)
            seconds[engine].append(process.load_s)
            process.close()
    logger.info("load times: done")
    return seconds


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return the results, which OUT.json holds."""
    load_seconds = measure_loads(args.engines, args.checkpoint, args.loads - 1)
    processes = [EngineProcess(engine, args.checkpoint) for engine in args.engines]
    for process in processes:
        load_seconds[process.engine].append(process.load_s)
    all_scenarios = make_scenarios(Tokenizer(args.checkpoint), args.quick)
    scenarios = [scenario for scenario in all_scenarios if args.only in scenario.name]
    for scenario in scenarios:
        measure(processes, scenario, args.batch_sizes, args.repeats if scenario.kind == "latency" else args.rounds)
    results = summary(args, processes, scenarios)
    results["load_seconds"] = load_seconds
    results["errors"] = measure_errors(processes, next(s for s in all_scenarios if s.name == MIXED))
    results["time_shares"] = {scenarios[0].name: measure_shares(processes, scenarios[0])}
    for process in processes:
        process.close()
    return results


def summary(args: argparse.Namespace, processes: list[EngineProcess], scenarios: list[Scenario]) -> dict[str, Any]:
    """Return machine, versions, architecture and engines, and the figures of what was measured."""
    a = read_architecture(args.checkpoint)
    return {
        "machine": report.machine(),
        "versions": report.versions(),
        "architecture": {
            "layers": len(a.windows), "hidden": a.hidden, "intermediate": a.intermediate, "vocab_size": a.vocab_size
        },
        "rounds": args.rounds,
        "scenarios": [figures(scenario, a) for scenario in scenarios],
        "matmul_flops": processes[0].run(worker.matmul_flops),
        "engines": {
            process.engine: {"description": process.description, **process.run(worker.peak_memory)}
            for process in processes
        },
    }  # fmt: skip


def integers(text: str) -> list[int]:
    """Return the whole numbers of a list with commas."""
    return [int(number) for number in text.split(",")]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=SMALL)
    parser.add_argument(
        "--engines", type=engine_names, default=DEFAULT, help="the first is compared with each of the others"
    )
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.png")
    parser.add_argument(
        "--quick", action="store_true", help="only the texts that have targets and one call, few rounds"
    )
    parser.add_argument("--only", default="", help="only the sets of texts whose name holds this, such as mixed")
    parser.add_argument("--rounds", type=int, help="timed rounds of a scenario; default 7, quick 3")
    parser.add_argument("--repeats", type=int, help="times that one text is embedded; default 100, quick 20")
    parser.add_argument("--loads", type=int, help="starts of each engine; default 3, quick 2")
    parser.add_argument(
        "--batch-sizes", type=integers, default="4,8,16,32,64,128,256", help=f"tried for {', '.join(BATCHED)}"
    )
    args = parser.parse_args()
    for name, full, quick in (("rounds", 7, 3), ("repeats", 100, 20), ("loads", 3, 2)):
        if getattr(args, name) is None:
            setattr(args, name, quick if args.quick else full)
    results = run(args)
    logger.info("\n%s", engines_report.markdown(results))
    if args.out:
        engines_report.write(results, args.out)


if __name__ == "__main__":
    main()
