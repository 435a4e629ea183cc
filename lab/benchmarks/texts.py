"""The texts that benchmarks embed, the same in every run, and the operations that they take."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from engine.model import Architecture
from engine.tokenizer import Tokenizer

# Common words, each of them one token of any vocabulary.
WORDS = """
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money
story fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end member law car city community name president team minute idea body information
""".split()  # noqa: SIM905 - shorter than a list

MIXED = "64 mixed texts"


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
    """Return texts of all kinds; unless `quick` also 8,192 tokens in texts of 16, 512 and 2,048."""
    generator = np.random.default_rng(0)
    plan = [
        (MIXED, mixed_token_counts(64, generator), "throughput"),
        ("8 texts of 128", [128] * 8, "throughput"),
        *((f"one text of {length}", [length], "latency") for length in (16, 64, 512)),
        ("16 texts of 8-300, one call", generator.integers(8, 301, size=16).tolist(), "call"),
    ]
    if not quick:
        plan += [(f"{8_192 // n} texts of {n}", [n] * (8_192 // n), "throughput") for n in (16, 512, 2_048)]
    scenarios = []
    for seed, (name, lengths, kind) in enumerate(plan):
        texts = random_texts(tokenizer, lengths, seed)
        scenarios.append(Scenario(name, kind, texts, count_tokens(tokenizer, texts)))
    return scenarios


def count_tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    """Return the number of tokens in each text, without a prompt."""
    return [len(text.ids) for text in tokenizer.encode([""] * len(texts), texts)]


def random_texts(tokenizer: Tokenizer, token_counts: Sequence[int], seed: int) -> list[str]:
    """Return a text of random words for each count, with that many tokens."""
    counts = count_tokens(tokenizer, [f"a {word}" for word in WORDS])
    words = [word for word, count in zip(WORDS, counts, strict=True) if count == 4]  # <bos> a word <eos>
    generator = np.random.default_rng(seed)
    return [" ".join(["a", *generator.choice(words, size=max(count - 3, 0))]) for count in token_counts]


def mixed_token_counts(count: int, generator: np.random.Generator) -> list[int]:
    """Return `count` lengths of texts, 8 to 2,048 tokens, half of them below 66."""
    lengths: list[int] = np.clip(generator.lognormal(4.2, 0.8, size=count), 8, 2_048).astype(int).tolist()
    return lengths


def random_token_ids(vocab_size: int, token_counts: Sequence[int], copies: int) -> list[list[int]]:
    """Return `copies` texts of each count as random token ids between `<bos>` and `<eos>`."""
    generator = np.random.default_rng(0)
    return [[2, *generator.integers(5, vocab_size, n - 2).tolist(), 1] for n in token_counts for _ in range(copies)]


def matmul_flops(a: Architecture, tokens: int) -> float:
    """Return the floating point operations of the layers' matmuls for `tokens` tokens."""
    of_layers = sum(a.hidden * each.width * 2 * (each.query + each.key_value) for each in map(a.heads_of, a.windows))
    return 2.0 * tokens * (of_layers + 3 * a.hidden * (a.intermediate + a.per_layer) * len(a.windows))


def flops(a: Architecture, length: int) -> float:
    """Return the floating point operations that a text of `length` tokens takes: matmuls, attention and head."""
    positions = np.arange(length)
    total = matmul_flops(a, length)
    for window in a.windows:
        reach = length if window is None else window
        pairs = (np.minimum(positions + reach, length - 1) - np.maximum(positions - reach, 0) + 1).sum()
        total += 4 * a.heads * a.heads_of(window).width * float(pairs)
    return total + sum(2.0 * inputs * outputs for inputs, outputs in pairwise((a.hidden, *a.dense)))
