"""Measure engines side by side on this machine: the one source of claims about speed.

    python -m checkpoints.make_random /tmp/random --tokenizer tokenizer.json
    python -m benchmarks.engines --checkpoint /tmp/random --out docs/benchmarks/cpu
    python -m benchmarks.engines --quick                      # the small checkpoint, minutes

Every engine runs in a process of its own. They take turns on the same texts, round by round, so a busy machine slows
all of them. Prints a table; `--out NAME` writes NAME.json, NAME.md and NAME.png.
"""

import argparse
import logging
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from benchmarks import engines_report, report, worker
from benchmarks.scenarios import Scenario, figures, make_scenarios
from engine.checkpoint import read_architecture
from engine.tokenizer import Tokenizer
from weights import SMALL

logger = logging.getLogger(__name__)

DEFAULT_BATCH_SIZE = 32  # sentence-transformers' own

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
    """Return the engine's fastest batch size for these texts. Tries each once, which also warms up."""
    if scenario.kind != "throughput" or process.engine != "reference":
        process.run(worker.embed_s, scenario.texts, DEFAULT_BATCH_SIZE)
        return DEFAULT_BATCH_SIZE
    useful = [size for size in sizes if size < len(scenario.texts)]
    useful += sizes[len(useful) : len(useful) + 1]  # the first that holds all texts
    trials = {size: process.run(worker.embed_s, scenario.texts, size) for size in useful}
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
    engines = args.engines.split(",")
    load_seconds = measure_loads(engines, args.checkpoint, args.loads)
    scenarios = make_scenarios(Tokenizer(args.checkpoint), args.quick)
    scenarios = [scenario for scenario in scenarios if args.only in scenario.name]
    processes = [EngineProcess(engine, args.checkpoint) for engine in engines]
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    for scenario in scenarios:
        measure(processes, scenario, sizes, args.repeats if scenario.kind == "latency" else args.rounds)
    a = read_architecture(args.checkpoint)
    profiled = ([scenario for scenario in scenarios if scenario.kind == "throughput"] or scenarios)[-1]
    shares = {
        process.engine: process.run(worker.profile, profiled.texts, profiled.batch_size[process.engine])
        for process in processes
    }
    results = {
        "machine": report.machine(),
        "versions": report.versions(),
        "architecture": {
            "layers": len(a.windows), "hidden": a.hidden, "intermediate": a.intermediate, "vocab_size": a.vocab_size
        },
        "rounds": args.rounds,
        "load_seconds": load_seconds,
        "scenarios": [figures(scenario, a) for scenario in scenarios],
        "time_shares": {profiled.name: shares},
        "matmul_flops": processes[0].run(worker.matmul_flops),
        "engines": {
            process.engine: {"description": process.description, **process.run(worker.peak_memory)}
            for process in processes
        },
    }  # fmt: skip
    for process in processes:
        process.close()
    return results


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=SMALL)
    parser.add_argument("--engines", default="packed,reference", help="the first is compared with each of the others")
    parser.add_argument("--out", type=Path, help="write OUT.json, OUT.md and OUT.png")
    parser.add_argument("--quick", action="store_true", help="a quarter of the texts, few rounds")
    parser.add_argument("--only", default="", help="only the sets of texts whose name holds this, such as mixed")
    parser.add_argument("--rounds", type=int, help="timed rounds of a scenario; default 7, quick 3")
    parser.add_argument("--repeats", type=int, help="times that one text is embedded; default 100, quick 20")
    parser.add_argument("--loads", type=int, help="starts of each engine; default 3, quick 2")
    parser.add_argument("--batch-sizes", default="4,8,16,32,64,128,256", help="tried for sentence-transformers")
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
