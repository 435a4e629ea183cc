"""Steps of `lab.benchmarks.gpu`: what each switch of the engine is worth, and a pass of the fastest variant for ncu."""

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

import engine.kernels
from engine.kernels import MERGED, Kernels
from engine.model import BFLOAT16
from engine.packed import PackedEngine
from lab.benchmarks import gpu_report as names
from lab.benchmarks.embedders import embedder
from lab.benchmarks.gpu_ceilings import lasting_s, pass_s, some_of
from lab.benchmarks.gpu_matmuls import DEPENDENT, EVERYWHERE
from lab.benchmarks.gpu_steps import ON_GPU, SHORT, Sample, Step, embed_stream, latency, main, mixed_sample, sample
from lab.benchmarks.gpu_steps import throughput as measured
from lab.report import read_json

Settings = dict[str, Any]
Variants = dict[str, tuple[Settings, str]]

ROOM, LONGEST = "engine.graphs.ROOM", "engine.graphs.LONGEST"
BUDGET, BULK = "engine.packed.GPU_BATCH_TOKENS", "engine.packed.BULK"
SETTINGS: Variants = {
    "graphs as recorded": ({ROOM: 16, LONGEST: (128, 512, 2048)}, "-0.3 to -0.7 ms a pass"),
    "16,384 tokens in bulk": ({BULK: 1}, "-3 to -5 % tokens/s from ids"),
    "32,768 tokens a pass": ({BUDGET: 32_768, BULK: 1}, "0.3 to 0.5 ms a pass"),
    "8,192 tokens a pass": ({BUDGET: 8_192}, "-0.5 ms a pass"),
    "bfloat16": ({"numbers": BFLOAT16}, "nothing"),
    "without graphs": ({"graphs": False}, "-5 ms a query"),
}  # fmt: skip
"""Each variant's settings and what they should save. A setting is an option of PackedEngine or a module's constant.

A line here adds a variant. Those of single kernels are found.
"""
OF_KERNELS: dict[str, str] = {
    "qkv_attention of MERGED": "0.9 to 1.1 ms a pass, 0.07 ms a query",
    "gate_up of MERGED": "0.2 to 0.6 ms a pass",
    "few_rows of MERGED": "0.2 ms a query",
}
"""What a variant of a single kernel should save, by the name that `of_kernels` gives it."""
RECORDED = {
    "engine": "an H200 in docs/benchmarks/h200", names.PASS: 9.64, names.QUERY: 0.94, names.FROM_TEXTS: 1_413_797,
    names.FROM_IDS: 1_559_183, names.PREDICTED: "tokens/s from texts: one matrix as head and tight graphs 1.52 M, "
    "arrays of token ids 1.65 M, attention over tiles 1.85 M, GeGLU in its matmul 1.95 M, 32,768 tokens 2.03 M",
}  # fmt: skip


def of_kernels(base: Kernels) -> Variants:
    """Return `base` with each other implementation of a piece that `engine.kernels` has, PyTorch's own last."""
    found: Variants = {}
    known = {name: each for name, each in vars(engine.kernels).items() if isinstance(each, Kernels)}
    for name, kernels in sorted(known.items(), key=lambda item: item[0] == "PLAIN"):
        for piece in (field.name for field in fields(Kernels)):
            if (other := getattr(kernels, piece)) is not getattr(base, piece):
                variant = f"{piece} of {name}"
                found[variant] = {"kernels": replace(base, **{piece: other})}, OF_KERNELS.get(variant, "")
    return found


def variants(base: Kernels | None) -> Variants:
    """Return all variants of an engine with these kernels: first what no GPU has shown, last PyTorch's kernels."""
    if not (base and ON_GPU):
        return SETTINGS
    few = replace(base, few_rows=MERGED.few_rows)
    together: Variants = {
        "few_rows, dependent": ({"kernels": few, DEPENDENT: EVERYWHERE}, "0.28 ms a query"),
        "all merged": ({"kernels": MERGED}, "1.1 to 1.7 ms a pass, 0.27 ms a query"),
        "all merged, dependent": ({"kernels": MERGED, DEPENDENT: EVERYWHERE}, "as above, 0.35 ms a query"),
    }
    single = of_kernels(base)
    return {name: single[name] for name in OF_KERNELS if name in single} | together | SETTINGS | single


def load(step: Step, settings: Settings) -> PackedEngine:
    """Return the engine with these settings. Raises AttributeError for a constant that does not exist."""
    with ExitStack() as patched:
        for name in (constants := [name for name in settings if "." in name]):
            patched.enter_context(patch(name, settings[name]))
        return PackedEngine(step.checkpoint, **{name: settings[name] for name in settings.keys() - constants})


def measure_variant(step: Step, name: str, settings: Settings, mixed: Sample, prediction: str = "") -> Kernels | None:
    """Write a variant's row, figure by figure, and return its kernels; None if it cannot be loaded."""
    start = time.perf_counter()
    if (loaded := step.attempt(("load", name), partial(load, step, settings))) is None:
        return None
    facts = {"engine": loaded.description, "load s": time.perf_counter() - start, names.PREDICTED: prediction}
    step.part((names.VARIANTS, name), lambda: facts)
    batches, work = list(mixed.batches(loaded.batch_tokens)), step.workload
    query = sample(step.checkpoint, [SHORT] * 20, seed=SHORT).texts

    def embed_ids(texts: Sample) -> int:
        loaded.embed(texts.token_ids)
        return int(texts.size["tokens"])

    columns: dict[str, Callable[[], float]] = {
        names.PASS: lambda: pass_s(loaded, some_of(batches, work.passes)) * names.PASS_TOKENS * 1e3,
        names.QUERY: lambda: latency(embedder(loaded), query, work.repeats)["p50 ms"],
        names.LASTING: lambda: lasting_s(loaded, batches) * names.PASS_TOKENS * 1e3,
        names.FROM_TEXTS: lambda: measured(partial(embed_stream, loaded), mixed)["tokens/s"],
        names.FROM_IDS: lambda: measured(embed_ids, mixed)["tokens/s"],
    }
    for column, measure in columns.items():
        step.part((names.VARIANTS, name, column), measure)
    return loaded.network.kernels


def measure_variants(step: Step) -> None:
    """Measure the engine as it is served, each variant while time is left, and the first again: what may be chance."""
    end = time.monotonic() + step.workload.variants_s
    mixed = mixed_sample(step.checkpoint, step.workload.texts // 2)
    base = measure_variant(step, names.SERVED, {}, mixed)
    step.part((names.VARIANTS, names.RECORDED), RECORDED.copy)
    for name, (settings, prediction) in variants(base).items():
        if time.monotonic() < end:
            measure_variant(step, name, settings, mixed, prediction)
        else:
            step.part((names.VARIANTS, name), lambda: {"engine": "not measured: no time was left"})
    measure_variant(step, names.AGAIN, {}, mixed)


def measure_pass(step: Step) -> None:
    """Launch a pass of the fastest variant between the calls that ncu waits for."""
    rows = names.figures_of(read_json(step.out.parents[1] / "gpu_check.json"), "variants", names.VARIANTS)
    known = variants(load(step, {}).network.kernels)
    taken_ms = {name: row[names.PASS] for name, row in rows.items() if names.PASS in row and name != names.RECORDED}
    fastest = min(taken_ms, key=taken_ms.__getitem__, default=names.SERVED)
    loaded = load(step, known.get(fastest, ({}, ""))[0])
    step.part(("one pass", fastest), lambda: {"engine": loaded.description})
    batch = next(mixed_sample(step.checkpoint, step.workload.some_texts).batches(loaded.batch_tokens))
    loaded.launch(batch)()
    with torch.cuda.profiler.profile() if ON_GPU else nullcontext():
        loaded.launch(batch)()


MEASURES = {"variants": measure_variants, "ncu": measure_pass}

if __name__ == "__main__":
    main(MEASURES)
