"""How fast the engine is, in each variant, by budget and by length of the texts, beside sentence-transformers."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.embedders import Embed, embedder, load_reference
from benchmarks.gpu_engines import (
    ON_GPU,
    VARIANTS,
    Texts,
    elapsed_s,
    embed_overlapped,
    load,
    make_texts,
    mixed_texts,
)
from benchmarks.gpu_page import BATCH_SIZES, LATENCY, LENGTHS, REFERENCE, SERVED, THROUGHPUT
from benchmarks.gpu_parts import Step
from engine.packed import PackedEngine


def measure_speed(step: Step) -> None:
    """Measure the engine as it is served, sentence-transformers on the same texts, then the other variants."""
    texts = mixed_texts(step.checkpoint, step.workload.texts)
    singles = {f"{n} tokens": make_texts(step.checkpoint, [n] * 20, seed=2).texts for n in step.workload.single_lengths}
    measure_variant(step, SERVED, texts, singles)
    measure_reference(step, singles)
    for variant in [name for name in VARIANTS if name != SERVED]:
        measure_variant(step, variant, texts, singles)


def measure_variant(step: Step, variant: str, texts: Texts, singles: dict[str, list[str]]) -> None:
    """Measure throughput, memory and latency; as served also from token ids, by budget and by length."""
    if (engine := load(step, variant)) is None:
        return
    step.part(("engines", variant), lambda: {"": engine.description})
    rounds = step.workload.rounds
    step.part((THROUGHPUT, variant), lambda: throughput(partial(embed_overlapped, engine, texts.texts), texts, rounds))
    if ON_GPU:
        step.part(("peak memory of the device", variant), peak_memory)
    if variant == SERVED:
        row = f"{variant}, token ids made beforehand"
        step.part((THROUGHPUT, row), lambda: throughput(partial(engine.embed, texts.token_ids), texts, rounds))
        measure_settings(step, engine)
    for length, of_length in singles.items():
        step.part((LATENCY, variant, length), partial(latency, embedder(engine), of_length, step.workload.repeats))


def measure_settings(step: Step, engine: PackedEngine) -> None:
    """Measure throughput by the budget of tokens in a pass, and by the length of the texts."""
    work, usual = step.workload, engine.batch_tokens
    texts = mixed_texts(step.checkpoint, work.some_texts)
    for budget in work.budgets:
        engine.batch_tokens = budget
        run = partial(embed_overlapped, engine, texts.texts)
        step.part(("throughput by budget", f"{budget:,} tokens"), partial(throughput, run, texts, work.rounds))
    engine.batch_tokens = usual
    for length in work.lengths:
        step.part((LENGTHS, f"{length:,} tokens"), partial(throughput_of_length, step, engine, length))


def throughput_of_length(step: Step, engine: PackedEngine, length: int) -> dict[str, float]:
    """Return `throughput` of texts that all have so many tokens."""
    texts = make_texts(step.checkpoint, [length] * max(2, step.workload.tokens_a_length // length), seed=length)
    return throughput(partial(embed_overlapped, engine, texts.texts), texts, step.workload.rounds)


def throughput(run: Callable[[], Any], texts: Texts, rounds: int) -> dict[str, float]:
    """Return the texts' size, and tokens and texts a second in the best of some rounds: the first warms up."""
    seconds = min(elapsed_s(run) for _ in range(rounds))
    return texts.size | {"texts/s": len(texts.texts) / seconds, "tokens/s": texts.tokens / seconds}


def peak_memory() -> dict[str, float]:
    """Return the most that torch has held on the GPU since the engine's loading."""
    held = {"allocated MB": torch.cuda.max_memory_allocated(), "reserved MB": torch.cuda.max_memory_reserved()}
    return {name: size / 1e6 for name, size in held.items()}


def measure_reference(step: Step, singles: dict[str, list[str]]) -> None:
    """Measure sentence-transformers as its users call it, at its best batch size, on a part of the texts."""
    loaded = step.attempt(("load", REFERENCE), partial(load_reference, step.checkpoint))
    if loaded is None:
        return
    embed, description, _ = loaded
    work = step.workload
    texts = mixed_texts(step.checkpoint, work.reference_texts)
    trial = mixed_texts(step.checkpoint, work.reference_texts // 4)
    trials = {}
    for size in work.batch_sizes:
        run = partial(embed, trial.texts, size)
        if figures := step.part((BATCH_SIZES, str(size)), partial(throughput, run, trial, 2)):
            trials[figures["tokens/s"]] = size
    best = trials[max(trials)] if trials else work.batch_sizes[0]
    step.part(("engines", REFERENCE), lambda: {"": f"{description}, batch size {best}"})
    run = partial(embed, texts.texts, best)
    step.part((THROUGHPUT, REFERENCE), lambda: throughput(run, texts, work.rounds))
    for length, of_length in singles.items():
        step.part((LATENCY, REFERENCE, length), partial(latency, embed, of_length, max(2, work.repeats // 4)))


def latency(embed: Embed, texts: list[str], repeats: int) -> dict[str, float]:
    """Return the median and 99th percentile of one text's milliseconds, text in to vector out."""
    taken_s = [elapsed_s(partial(embed, [texts[turn % len(texts)]], 1)) for turn in range(repeats + 5)]
    p50, p99 = np.percentile(taken_s[5:], [50, 99]).tolist()  # the first five warm up
    return {"p50 ms": p50 * 1e3, "p99 ms": p99 * 1e3}
