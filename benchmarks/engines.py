"""Measure engines side by side on this machine: the one place that claims of speed come from.

    python -m checkpoints.make_random /tmp/random --tokenizer tokenizer.json
    python -m benchmarks.engines --checkpoint /tmp/random --out docs/benchmarks/cpu
    python -m benchmarks.engines --quick                      # the small checkpoint, minutes

Every engine runs in a process of its own and they take turns, round by round, on the same texts, so that a busy machine
slows all of them. Prints a table; `--out NAME` writes NAME.json, NAME.md and NAME.png.
"""

import argparse
import json
import logging
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from engine.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_BATCH_SIZE = 32  # sentence-transformers' own
WORDS = (  # common, so that each is one token of any vocabulary
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "father power hour game line end member law car city community name president team minute idea body information"
)


@dataclass
class Scenario:
    """Texts that are embedded in one call, and what came of it: `seconds[engine]` of every round."""

    name: str
    texts: list[str]
    tokens: int
    kind: str
    """throughput (at the best batch size), call (one call as it comes) or latency (one text, many times)."""
    seconds: dict[str, list[float]] = field(default_factory=dict)
    batch_size: dict[str, int] = field(default_factory=dict)


class Worker:
    """An engine's process."""

    def __init__(self, engine: str, checkpoint: Path) -> None:
        """Start it and wait for its first vector; `load_seconds` counts from before the process existed."""
        start = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", engine, str(checkpoint.resolve())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1, cwd=ROOT,
        )  # fmt: skip
        self._read(engine)
        self.engine = engine
        self.load_seconds = time.perf_counter() - start

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command and return the answer. Raises RuntimeError when the process has died."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        return self._read(self.engine)

    def _read(self, engine: str) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the {engine} engine's process ended with {self._process.wait()}; to see why, run "
                f"python -m benchmarks.worker {engine} CHECKPOINT"
            )
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def make_texts(tokenizer: Tokenizer, lengths: list[int], seed: int) -> list[str]:
    """Return texts of random English words, as many tokens each as `lengths` says."""
    words = WORDS.split()
    pairs = tokenizer.encode([""] * len(words), [f"a {word}" for word in words])
    single = [word for word, pair in zip(words, pairs, strict=True) if len(pair.ids) == 4]
    generator = np.random.default_rng(seed)
    return [" ".join(["a", *generator.choice(single, size=max(length - 3, 0))]) for length in lengths]


def make_scenarios(tokenizer: Tokenizer, quick: bool) -> list[Scenario]:
    """Return the fixed lengths, the mixed sets and the single texts."""
    generator = np.random.default_rng(0)
    budget = 2_048 if quick else 8_192
    short = generator.integers(8, 301, size=16).tolist()
    many = np.clip(generator.lognormal(4.2, 0.8, size=60 if quick else 500), 8, 2_048).astype(int).tolist()
    plan = [(f"length {n}", [n] * max(1, budget // n), "throughput") for n in (16, 128, 512, 2_048)]
    plan += [("16 texts of 8-300, one call", short, "call"), (f"{len(many)} mixed texts", many, "throughput")]
    plan += [(f"one text of {n}", [n], "latency") for n in (16, 64, 512)]
    scenarios = []
    for seed, (name, lengths, kind) in enumerate(plan):
        texts = make_texts(tokenizer, lengths, seed)
        tokens = sum(len(text.ids) for text in tokenizer.encode([""] * len(texts), texts))
        scenarios.append(Scenario(name, texts, tokens, kind))
    return scenarios


def choose_batch_size(worker: Worker, scenario: Scenario, sizes: list[int]) -> int:
    """Return the batch size at which the engine is fastest on these texts; each is tried once, which also warms up."""
    if scenario.kind != "throughput" or worker.engine != "reference":
        worker.ask(texts=scenario.texts, batch_size=DEFAULT_BATCH_SIZE)
        return DEFAULT_BATCH_SIZE
    useful = [size for size in sizes if size < len(scenario.texts)]
    useful += sizes[len(useful) : len(useful) + 1]  # the first that holds them all
    trials = {size: worker.ask(texts=scenario.texts, batch_size=size)["seconds"] for size in useful}
    return min(trials, key=trials.__getitem__)


def measure(workers: list[Worker], scenarios: list[Scenario], sizes: list[int], rounds: int, repeats: int) -> None:
    """Fill in the scenarios' seconds, the engines taking turns, each going first in turn."""
    for scenario in scenarios:
        for worker in workers:
            scenario.batch_size[worker.engine] = choose_batch_size(worker, scenario, sizes)
        for turn in range(repeats if scenario.kind == "latency" else rounds):
            for worker in workers[turn % len(workers) :] + workers[: turn % len(workers)]:
                answer = worker.ask(texts=scenario.texts, batch_size=scenario.batch_size[worker.engine])
                scenario.seconds.setdefault(worker.engine, []).append(answer["seconds"])
        logger.info("%s: done", scenario.name)


def measure_shares(workers: list[Worker], scenarios: list[Scenario]) -> dict[str, dict[str, Any]]:
    """Profile one call of each engine on the last set of texts that measures throughput, at its batch size."""
    chosen = [scenario for scenario in scenarios if scenario.kind == "throughput"][-1:] or scenarios[-1:]
    return {
        scenario.name: {
            w.engine: w.ask(profile=scenario.texts, batch_size=scenario.batch_size[w.engine]) for w in workers
        }
        for scenario in chosen
    }


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Run everything and return what is written as JSON."""
    engines = args.engines.split(",")
    load_seconds: dict[str, list[float]] = {engine: [] for engine in engines}
    for _ in range(args.loads):
        workers = []
        for engine in engines:
            worker = Worker(engine, args.checkpoint)
            load_seconds[engine].append(worker.load_seconds)
            worker.close()
    logger.info("load times: done")
    scenarios = make_scenarios(Tokenizer(args.checkpoint), args.quick)
    scenarios = [scenario for scenario in scenarios if args.only in scenario.name]
    workers = [Worker(engine, args.checkpoint) for engine in engines]
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    measure(workers, scenarios, sizes, args.rounds, args.repeats)
    results = {
        "machine": report.machine(),
        "versions": report.versions(),
        "architecture": report.architecture(args.checkpoint),
        "rounds": args.rounds,
        "load_seconds": load_seconds,
        "scenarios": [report.summary(scenario, engines, args.checkpoint) for scenario in scenarios],
        "time_shares": measure_shares(workers, scenarios),
        "matmul_flops": workers[0].ask(matmul=True)["flops"],
        "engines": {worker.engine: worker.ask(report=True) for worker in workers},
    }
    for worker in workers:
        worker.close()
    return results


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "checkpoints" / "small")
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
    logger.info("\n%s", report.table(results))
    if args.out:
        report.write(results, args.out)


if __name__ == "__main__":
    main()
