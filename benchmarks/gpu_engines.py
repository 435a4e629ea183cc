"""The engine in its variants, and texts to run it on, for the steps of `benchmarks.gpu`."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu_page import SERVED
from benchmarks.gpu_parts import Step
from benchmarks.scenarios import flops
from benchmarks.texts import mixed_token_counts, random_texts
from engine.checkpoint import read_architecture
from engine.kernels import PLAIN, Kernels
from engine.kernels.selection import candidates
from engine.model import BFLOAT16
from engine.packed import PackedEngine
from engine.tokenizer import TokenizedText, Tokenizer

ON_GPU = torch.cuda.is_available()
# Texts that a thread tokenizes while the device computes those before.
TEXTS_AT_ONCE = 2_048


def plain_but_attention() -> Kernels:
    """Return PyTorch's own kernels but FlashAttention, where the device has it."""
    return replace(PLAIN, attention=candidates(torch.float16, torch.device("cuda" if ON_GPU else "cpu")).attention)


# Options that differ from the engine as it is served.
VARIANTS: dict[str, Callable[[], dict[str, Any]]] = {
    SERVED: dict,
    "bfloat16": lambda: {"numbers": BFLOAT16},
    "without graphs": lambda: {"graphs": False},
    "without fused kernels": lambda: {"kernels": plain_but_attention()},
}


def load(step: Step, variant: str = SERVED) -> PackedEngine | None:
    """Return a variant of the engine; None, with the reason written, if it cannot be loaded."""
    return step.attempt(("load", variant), partial(load_variant, step.checkpoint, variant))


def load_variant(checkpoint: Path, variant: str) -> PackedEngine:
    """Return a variant of the engine; the GPU's peak memory counts from here."""
    gc.collect()  # the variant before
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return PackedEngine(checkpoint, **VARIANTS[variant]())


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts, their token ids, and what they cost: `flops` are the operations of all of them."""

    texts: list[str]
    token_ids: list[Sequence[int]]
    tokens: int
    flops: float

    @property
    def size(self) -> dict[str, float]:
        """Columns for a table of what was measured."""
        return {"texts": len(self.texts), "tokens": self.tokens, "MFLOP a token": self.flops / self.tokens / 1e6}


@cache
def load_tokenizer(checkpoint: Path) -> Tokenizer:
    """Return a checkpoint's tokenizer, which may take a second to load, from the second time on at once."""
    return Tokenizer(checkpoint)


def make_texts(checkpoint: Path, token_counts: Sequence[int], seed: int) -> Texts:
    """Return random texts of these lengths for a checkpoint."""
    tokenizer, architecture = load_tokenizer(checkpoint), read_architecture(checkpoint)
    texts = random_texts(tokenizer, token_counts, seed)
    token_ids: list[Sequence[int]] = [text.ids for text in tokenizer.encode([""] * len(texts), texts)]
    counts = Counter(len(ids) for ids in token_ids)
    operations = sum(flops(architecture, length) * count for length, count in counts.items())
    return Texts(texts, token_ids, sum(len(ids) for ids in token_ids), operations)


def mixed_texts(checkpoint: Path, count: int) -> Texts:
    """Return texts of 8 to 2,048 tokens, half of them below 66."""
    return make_texts(checkpoint, mixed_token_counts(count, np.random.default_rng(0)), seed=1)


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
