"""The measurements of `benchmarks.gpu`, each a step in a process of its own:

    python -m benchmarks.gpu_steps speed --checkpoint DIR --out speed.json

A step writes its file anew after every part of it, so that what was measured survives what comes after.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engines import make_texts
from benchmarks.number_formats import errors, random_texts
from benchmarks.time_shares import time_shares
from benchmarks.worker import embedder, load_reference
from engine.kernels import PLAIN
from engine.model import BFLOAT16, FLOAT32
from engine.packed import PackedEngine
from engine.tokenizer import TokenizedText

# What differs from the engine as it is served.
VARIANTS: dict[str, dict[str, Any]] = {
    "as served": {},
    "bfloat16": {"numbers": BFLOAT16},
    "without graphs": {"graphs": False},
    "without fused kernels": {"kernels": PLAIN},
}
# Texts that are tokenized at once, while the device computes the ones before.
CHUNK = 2_048


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    texts: int
    rounds: int
    repeats: int
    budgets: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    single: tuple[int, ...]
    classes: dict[str, list[int]]


GPU = Sizes(
    texts=8_000, rounds=3, repeats=200, budgets=(4_096, 8_192, 16_384, 32_768), batch_sizes=(32, 64, 128, 256, 512),
    single=(16, 32, 64, 128, 512),
    classes={"2-20": list(range(2, 21)), "255-515": [255, 256, 257, 258, 511, 512, 513, 514, 515],
             "1023-2048": [1023, 1024, 1025, 2047, 2048]},
)  # fmt: skip
SMOKE = Sizes(
    texts=6, rounds=1, repeats=2, budgets=(128, 256), batch_sizes=(4,), single=(16,), classes={"2-20": [2, 20]}
)


@dataclass(slots=True)
class Step:
    """A step under way: what it measures, and what it has found, which `save` writes."""

    checkpoint: Path
    out: Path
    sizes: Sizes
    found: dict[str, Any] = field(default_factory=dict)

    def save(self, **found: Any) -> None:
        """Add to what was found and write all of it."""
        self.found |= found
        self.out.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")

    def engine(self, variant: str) -> PackedEngine:
        """Load a variant of the engine."""
        return PackedEngine(self.checkpoint, **VARIANTS[variant])


def overlapped(engine: PackedEngine, texts: list[str]) -> np.ndarray:
    """Return the texts' vectors; a thread tokenizes the next chunk while the device computes the last one."""

    def tokenize(start: int) -> list[TokenizedText]:
        chunk = texts[start : start + CHUNK]
        return engine.tokenizer.encode([""] * len(chunk), chunk)

    starts = range(0, len(texts), CHUNK)
    with ThreadPoolExecutor(max_workers=1) as thread:
        tokenized = [thread.submit(tokenize, start) for start in starts]
        return np.concatenate([engine.embed([text.ids for text in one.result()]) for one in tokenized])


def seconds_of(run: Callable[[], Any]) -> float:
    """Return how long a call takes. It ends with its results on the host, so the device is done too."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def mixed_texts(engine: PackedEngine, count: int) -> tuple[list[str], int]:
    """Return texts of 8 to 2,048 tokens, half of them below 66, and how many tokens they have together."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(4.2, 0.8, size=count), 8, 2_048).astype(int).tolist()
    texts = make_texts(engine.tokenizer, lengths, seed=1)
    return texts, sum(len(text.ids) for text in engine.tokenizer.encode([""] * count, texts))


def speed(step: Step) -> None:
    """Throughput, then latency, of every variant and of sentence-transformers, on the same texts, taking turns."""
    reference, description, _ = load_reference(step.checkpoint)
    engines = {}
    for variant in VARIANTS:
        try:
            engines[variant] = step.engine(variant)
        except Exception as error:  # one variant's fault must not cost the others' figures
            step.save(**{f"{variant} failed": repr(error)})
    step.save(descriptions={name: one.description for name, one in engines.items()} | {"reference": description})
    texts, tokens = mixed_texts(engines["as served"], step.sizes.texts)
    step.save(texts=len(texts), tokens=tokens)
    budget = best_budget(step, engines["as served"], texts, tokens)
    batch_size = best_batch_size(step, reference, texts[: max(4, len(texts) // 4)])
    runs: dict[str, Callable[[], Any]] = {"reference": partial(reference, texts, batch_size)}
    for name, engine in engines.items():
        engine.batch_tokens = budget
        runs[name] = partial(overlapped, engine, texts)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(step.sizes.rounds):
        for name, run in runs.items():
            seconds[name].append(seconds_of(run))
        step.save(throughput={name: tokens / min(measured) for name, measured in seconds.items() if measured})
    latency: dict[str, Any] = {}
    calls = {name: embedder(engine) for name, engine in engines.items()} | {"reference": reference}
    for length in step.sizes.single:
        latency[str(length)] = single_text(
            calls, make_texts(engines["as served"].tokenizer, [length] * 20, seed=2), step
        )
        step.save(latency_ms=latency)


def best_budget(step: Step, engine: PackedEngine, texts: list[str], tokens: int) -> int:
    """Return the budget of tokens that the engine is fastest with, each tried as often as there are rounds."""
    rates = {}
    for budget in step.sizes.budgets:
        engine.batch_tokens = budget
        overlapped(engine, texts[:CHUNK])
        rates[budget] = tokens / min(seconds_of(partial(overlapped, engine, texts)) for _ in range(step.sizes.rounds))
        step.save(by_batch_tokens=rates)
    return max(rates, key=rates.__getitem__)


def best_batch_size(step: Step, embed: Callable[[list[str], int], np.ndarray], texts: list[str]) -> int:
    """Return the batch size that sentence-transformers is fastest with on some of the texts."""
    embed(texts[:16], step.sizes.batch_sizes[0])
    trials = {size: seconds_of(partial(embed, texts, size)) for size in step.sizes.batch_sizes}
    step.save(reference_seconds_by_batch_size=trials)
    return min(trials, key=trials.__getitem__)


def single_text(calls: dict[str, Any], texts: list[str], step: Step) -> dict[str, dict[str, float]]:
    """Return the median and 99th percentile of one text's time in milliseconds, text in to vector out, of each."""
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-5, step.sizes.repeats):
        text = texts[turn % len(texts)]
        for name, embed in calls.items():
            if name == "reference" and turn > step.sizes.repeats // 4:
                continue  # it takes most of the time
            taken = seconds_of(partial(embed, [text], 1)) * 1e3
            if turn >= 0:  # those before warm up
                milliseconds[name].append(taken)
    return {
        name: {"p50": float(np.percentile(ms, 50)), "p99": float(np.percentile(ms, 99))}
        for name, ms in milliseconds.items()
    }


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
print(json.dumps({"import_s": imported - start, "load_s": loaded - imported, "first_vector_s": now - loaded}))
"""


def setup(step: Step) -> None:
    """Process start to first vector: with nothing compiled yet, then as on a later start of the same machine."""
    with tempfile.TemporaryDirectory() as cache:
        for name in ("nothing compiled yet", "kernels compiled before")[: step.sizes.rounds]:
            start = time.perf_counter()
            run = subprocess.run(
                [sys.executable, "-c", SETUP, str(step.checkpoint)], capture_output=True, text=True, check=True,
                env=os.environ | {"TRITON_CACHE_DIR": cache},
            )  # fmt: skip
            step.save(**{name: json.loads(run.stdout) | {"process_s": time.perf_counter() - start}})


def parity(step: Step) -> None:
    """1 - cosine against float32 of PyTorch's own kernels on the same device, and what a text's company changes."""
    exact = PackedEngine(step.checkpoint, numbers=FLOAT32, kernels=PLAIN, graphs=False)
    vocabulary = exact.network.architecture.vocab_size
    classes = {name: random_texts(vocabulary, lengths, 2) for name, lengths in step.sizes.classes.items()}
    everything = [text for texts in classes.values() for text in texts]
    expected = exact.embed(everything)
    for variant in VARIANTS:
        engine = step.engine(variant)
        together = engine.embed(everything)
        alone = np.concatenate([engine.embed([text]) for text in everything])
        rows, first = {}, 0
        for name, texts in classes.items():
            part = slice(first, first + len(texts))
            first += len(texts)
            rows[name] = {
                "alone": float(errors(alone[part], expected[part])[0].max()),
                "together": float(errors(together[part], expected[part])[0].max()),
            }
        units = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (alone, together))
        largest = float(np.abs(np.subtract(*units)).max())
        step.save(**{variant: {"one_minus_cosine": rows, "largest_difference_by_company": largest}})


def shares(step: Step) -> None:
    """Seconds by kind of work, of mixed texts and of single ones."""
    engine = step.engine("as served")
    texts, _ = mixed_texts(engine, step.sizes.texts // 2)
    overlapped(engine, texts)
    step.save(**{f"{len(texts)} mixed texts": time_shares(partial(overlapped, engine, texts))})
    embed = embedder(engine)
    single = make_texts(engine.tokenizer, [32] * max(2, step.sizes.repeats // 4), seed=3)
    for text in single[:5]:
        embed([text], 1)
    step.save(**{"single texts of 32": time_shares(lambda: [embed([text], 1) for text in single])})


STEPS: dict[str, Callable[[Step], None]] = {"speed": speed, "setup": setup, "parity": parity, "shares": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="hardly anything, to see that it runs")
    args = parser.parse_args()
    STEPS[args.step](Step(args.checkpoint, args.out, SMOKE if args.smoke else GPU))


if __name__ == "__main__":
    main()
