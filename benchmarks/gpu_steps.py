"""The measurements of `benchmarks.gpu`, each a step in a process of its own:

    python -m benchmarks.gpu_steps speed --checkpoint DIR --out speed.json

A step writes its file anew after every part, so a later failure loses nothing that was measured.
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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.embedders import Embed, embedder, load_reference
from benchmarks.number_formats import errors
from benchmarks.texts import count_tokens, mixed_token_counts, random_texts, random_token_ids
from benchmarks.time_shares import time_shares
from engine.kernels import PLAIN, Kernels
from engine.kernels.selection import candidates
from engine.model import BFLOAT16, FLOAT32
from engine.packed import PackedEngine
from engine.tokenizer import TokenizedText


def plain_but_attention() -> Kernels:
    """Return PyTorch's own kernels but FlashAttention, where the device has it."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return replace(PLAIN, attention=candidates(torch.float16, device).attention)


# Options that differ from the engine as it is served.
VARIANTS: dict[str, dict[str, Any]] = {
    "as served": {},
    "bfloat16": {"numbers": BFLOAT16},
    "without graphs": {"graphs": False},
    "without fused kernels": {"kernels": plain_but_attention()},
}
# Texts that a thread tokenizes while the device computes those before.
TEXTS_AT_ONCE = 2_048


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is measured."""

    texts: int
    rounds: int
    repeats: int
    budgets: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    single_lengths: tuple[int, ...]
    parity_lengths: dict[str, list[int]]


FULL = Workload(
    texts=8_000, rounds=3, repeats=200, budgets=(4_096, 8_192, 16_384, 32_768), batch_sizes=(32, 64, 128, 256, 512),
    single_lengths=(16, 32, 64, 128, 512),
    parity_lengths={"2-20": list(range(2, 21)), "255-515": [255, 256, 257, 258, 511, 512, 513, 514, 515],
                    "1023-2048": [1023, 1024, 1025, 2047, 2048]},
)  # fmt: skip
SMOKE = Workload(
    texts=6, rounds=1, repeats=2, budgets=(128, 256), batch_sizes=(4,), single_lengths=(16,),
    parity_lengths={"2-20": [2, 20]},
)  # fmt: skip


@dataclass(slots=True)
class Measurement:
    """A step under way: its checkpoint, output file and workload, and its figures so far, which `save` writes."""

    checkpoint: Path
    out: Path
    workload: Workload
    figures: dict[str, Any] = field(default_factory=dict)

    def save(self, figures: dict[str, Any]) -> None:
        """Add these figures and write all of them."""
        self.figures |= figures
        self.out.write_text(json.dumps(self.figures, indent=1) + "\n", encoding="utf-8")

    def load(self, variant: str) -> PackedEngine:
        """Load a variant of the engine."""
        return PackedEngine(self.checkpoint, **VARIANTS[variant])


def embed_overlapped(engine: PackedEngine, texts: list[str]) -> np.ndarray:
    """Return the texts' vectors. A thread tokenizes the next texts while the device computes the last ones."""

    def tokenize(start: int) -> list[TokenizedText]:
        part = texts[start : start + TEXTS_AT_ONCE]
        return engine.tokenizer.encode([""] * len(part), part)

    with ThreadPoolExecutor(max_workers=1) as thread:
        parts = thread.map(tokenize, range(0, len(texts), TEXTS_AT_ONCE))
        return np.concatenate([engine.embed([text.ids for text in part]) for part in parts])


def elapsed_s(run: Callable[[], Any]) -> float:
    """Return the seconds that a call takes. Its results are on the host, so the device is done too."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def mixed_texts(engine: PackedEngine, count: int) -> list[str]:
    """Return texts of 8 to 2,048 tokens, half of them below 66."""
    return random_texts(engine.tokenizer, mixed_token_counts(count, np.random.default_rng(0)), seed=1)


def measure_speed(step: Measurement) -> None:
    """Measure throughput, then latency, of every variant and of sentence-transformers on the same texts, in turn."""
    reference, description, _ = load_reference(step.checkpoint)
    engines = {}
    for variant in VARIANTS:
        try:
            engines[variant] = step.load(variant)
        except Exception as error:  # the other variants still have figures to give
            step.save({f"{variant} failed": repr(error)})
    served = engines["as served"]
    step.save({"descriptions": {name: e.description for name, e in engines.items()} | {"reference": description}})
    texts = mixed_texts(served, step.workload.texts)
    tokens = sum(count_tokens(served.tokenizer, texts))
    step.save({"texts": len(texts), "tokens": tokens})
    budget = best_budget(step, served, texts, tokens)
    batch_size = best_batch_size(step, reference, texts[: max(4, len(texts) // 4)])
    runs: dict[str, Callable[[], Any]] = {"reference": partial(reference, texts, batch_size)}
    for name, engine in engines.items():
        engine.batch_tokens = budget
        runs[name] = partial(embed_overlapped, engine, texts)
    best_s = dict.fromkeys(runs, float("inf"))
    for _ in range(step.workload.rounds):
        for name, run in runs.items():
            best_s[name] = min(best_s[name], elapsed_s(run))
        step.save({"throughput": {name: tokens / seconds for name, seconds in best_s.items()}})
    latency: dict[str, Any] = {}
    calls = {name: embedder(engine) for name, engine in engines.items()} | {"reference": reference}
    for length in step.workload.single_lengths:
        singles = random_texts(served.tokenizer, [length] * 20, seed=2)
        latency[str(length)] = measure_latency(calls, singles, step.workload.repeats)
        step.save({"latency_ms": latency})


def best_budget(step: Measurement, engine: PackedEngine, texts: list[str], tokens: int) -> int:
    """Return the budget of tokens with which the engine is fastest, each tried as often as there are rounds."""
    rates = {}
    for budget in step.workload.budgets:
        engine.batch_tokens = budget
        embed_overlapped(engine, texts[:TEXTS_AT_ONCE])
        seconds = [elapsed_s(partial(embed_overlapped, engine, texts)) for _ in range(step.workload.rounds)]
        rates[budget] = tokens / min(seconds)
        step.save({"by_batch_tokens": rates})
    return max(rates, key=rates.__getitem__)


def best_batch_size(step: Measurement, embed: Embed, texts: list[str]) -> int:
    """Return the batch size with which sentence-transformers is fastest on these texts."""
    embed(texts[:16], step.workload.batch_sizes[0])
    trials = {size: elapsed_s(partial(embed, texts, size)) for size in step.workload.batch_sizes}
    step.save({"reference_seconds_by_batch_size": trials})
    return min(trials, key=trials.__getitem__)


def measure_latency(calls: dict[str, Embed], texts: list[str], repeats: int) -> dict[str, dict[str, float]]:
    """Return the median and 99th percentile of one text's milliseconds, text in to vector out, of each engine."""
    milliseconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-5, repeats):  # the negative ones warm up
        text = texts[turn % len(texts)]
        for name, embed in calls.items():
            if name == "reference" and turn > repeats // 4:
                continue  # it takes most of the time
            taken_s = elapsed_s(partial(embed, [text], 1))
            if turn >= 0:
                milliseconds[name].append(taken_s * 1e3)
    return {
        name: dict(zip(("p50", "p99"), np.percentile(taken, [50, 99]).tolist(), strict=True))
        for name, taken in milliseconds.items()
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


def measure_setup(step: Measurement) -> None:
    """Measure process start to first vector: with nothing compiled yet, then as on a later start."""
    with tempfile.TemporaryDirectory() as cache:
        for name in ("nothing compiled yet", "kernels compiled before")[: step.workload.rounds]:
            start = time.perf_counter()
            run = subprocess.run(
                [sys.executable, "-c", SETUP, str(step.checkpoint)], capture_output=True, text=True, check=True,
                env=os.environ | {"TRITON_CACHE_DIR": cache},
            )  # fmt: skip
            step.save({name: json.loads(run.stdout) | {"process_s": time.perf_counter() - start}})


def measure_parity(step: Measurement) -> None:
    """Measure 1 - cosine against float32 with PyTorch's kernels on the device, and how other texts change a vector."""
    exact = PackedEngine(step.checkpoint, numbers=FLOAT32, kernels=PLAIN, graphs=False)
    vocab_size = exact.network.architecture.vocab_size
    groups = {name: random_token_ids(vocab_size, n, 2) for name, n in step.workload.parity_lengths.items()}
    everything = [ids for group in groups.values() for ids in group]
    group_of = np.array([name for name, group in groups.items() for _ in group])
    expected = exact.embed(everything)
    for variant in VARIANTS:
        engine = step.load(variant)
        vectors = {
            "alone": np.concatenate([engine.embed([ids]) for ids in everything]),
            "together": engine.embed(everything),
        }
        cosines = {how: errors(rows, expected)[0] for how, rows in vectors.items()}
        worst = {name: {how: float(e[group_of == name].max()) for how, e in cosines.items()} for name in groups}
        units = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in vectors.values())
        difference = float(np.abs(np.subtract(*units)).max())
        step.save({variant: {"one_minus_cosine": worst, "largest_difference_by_company": difference}})


def measure_shares(step: Measurement) -> None:
    """Measure the seconds by kind of work, of mixed texts and of single ones."""
    engine = step.load("as served")
    texts = mixed_texts(engine, step.workload.texts // 2)
    embed_overlapped(engine, texts)
    step.save({f"{len(texts)} mixed texts": time_shares(partial(embed_overlapped, engine, texts))})
    embed = embedder(engine)
    singles = random_texts(engine.tokenizer, [32] * max(2, step.workload.repeats // 4), seed=3)
    for text in singles[:5]:
        embed([text], 1)
    step.save({"single texts of 32": time_shares(lambda: [embed([text], 1) for text in singles])})


STEPS: dict[str, Callable[[Measurement], None]] = {
    "speed": measure_speed, "setup": measure_setup, "parity": measure_parity, "shares": measure_shares
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="hardly anything, to see that it runs")
    args = parser.parse_args()
    STEPS[args.step](Measurement(args.checkpoint, args.out, SMOKE if args.smoke else FULL))


if __name__ == "__main__":
    main()
