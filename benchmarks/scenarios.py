"""The texts that `benchmarks.engines` embeds, and the figures that come of the measured times."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from benchmarks.texts import count_tokens, mixed_token_counts, random_texts
from engine.model import Architecture
from engine.tokenizer import Tokenizer

MIXED = "64 mixed texts"
TARGETED = (MIXED, "8 texts of 128", "one text of 16", "one text of 64", "one text of 512")
"""The names of the scenarios that `benchmarks.engines_targets` knows a target for."""


@dataclass
class Scenario:
    """Texts that are embedded in one call, and the seconds that each engine took in each round."""

    name: str
    kind: str
    """throughput (at the best batch size), call (with the defaults) or latency (one text, many times)."""
    texts: list[str]
    token_counts: list[int]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    batch_size: dict[str, int] = field(default_factory=dict)


def make_scenarios(tokenizer: Tokenizer, quick: bool) -> list[Scenario]:
    """Return those of TARGETED and one call; unless `quick` also 8,192 tokens in texts of 16, 512 and 2,048."""
    generator = np.random.default_rng(0)
    of_targets = (mixed_token_counts(64, generator), [128] * 8, [16], [64], [512])
    kinds = ("throughput", "throughput", "latency", "latency", "latency")
    plan = list(zip(TARGETED, of_targets, kinds, strict=True))
    plan.append(("16 texts of 8-300, one call", generator.integers(8, 301, size=16).tolist(), "call"))
    if not quick:
        plan += [(f"{8_192 // n} texts of {n}", [n] * (8_192 // n), "throughput") for n in (16, 512, 2_048)]
    scenarios = []
    for seed, (name, lengths, kind) in enumerate(plan):
        texts = random_texts(tokenizer, lengths, seed)
        scenarios.append(Scenario(name, kind, texts, count_tokens(tokenizer, texts)))
    return scenarios


def figures(scenario: Scenario, a: Architecture) -> dict[str, Any]:
    """Return a scenario's figures; `speedup` is the median over the rounds of an engine's time / the first one's."""
    count, tokens = len(scenario.texts), sum(scenario.token_counts)
    operations = sum(flops(a, length) for length in scenario.token_counts)
    by_engine = {}
    for engine, seconds in scenario.seconds.items():
        middle = median(seconds)
        by_engine[engine] = {
            "batch_size": scenario.batch_size[engine],
            "median_s": middle,
            "min_s": min(seconds),
            "p50_ms": middle * 1e3,
            "p99_ms": float(np.percentile(seconds, 99)) * 1e3,
            "tokens_per_s": tokens / middle,
            "texts_per_s": count / middle,
            "flops": operations / middle,
        }
    first, *others = scenario.seconds
    speedup = {
        engine: median(np.divide(scenario.seconds[engine], scenario.seconds[first]).tolist()) for engine in others
    }
    description = {"name": scenario.name, "kind": scenario.kind, "texts": count, "tokens": tokens}
    return description | {"engines": by_engine, "speedup": speedup}


def matmul_flops(a: Architecture, tokens: int) -> float:
    """Return the floating point operations of the layers' matmuls for so many tokens."""
    qkv_and_out = a.hidden * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    return 2.0 * tokens * (qkv_and_out + 3 * a.hidden * a.intermediate) * len(a.windows)


def flops(a: Architecture, length: int) -> float:
    """Return the floating point operations that a text of `length` tokens takes: matmuls, attention and head."""
    positions = np.arange(length)
    total = matmul_flops(a, length)
    for window in a.windows:
        reach = length if window is None else window
        pairs = (np.minimum(positions + reach, length - 1) - np.maximum(positions - reach, 0) + 1).sum()
        total += 4 * a.heads * a.head_dim * float(pairs)
    return total + 2 * a.dense[0] * (a.hidden + a.dense[1])
