"""Steps of `lab.benchmarks.gpu`: what each switch of the engine is worth, and cuBLAS's workspace; a pass for ncu."""

import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from functools import partial
from typing import NamedTuple

import torch

from engine.faster_kernels import TRIALS
from engine.kernels import FUSED, MERGED
from engine.packed import PackedEngine
from lab.benchmarks import gpu_figures as names
from lab.benchmarks import gpu_steps as steps
from lab.benchmarks.embedders import embedder
from lab.benchmarks.gpu_ceilings import lasting_s, measure_profile, pass_s, some_of
from lab.benchmarks.gpu_figures import PASS, QUERY
from lab.benchmarks.gpu_steps import ON_GPU, Sample, Step, main, mixed_sample
from lab.benchmarks.gpu_tiles import DEPENDENT, EVERYWHERE, Settings, patched
from lab.report import read_json

ROOM, LONGEST = "engine.graphs.ROOM", "engine.graphs.LONGEST"
BUDGET, BULK = "engine.packed.GPU_BATCH_TOKENS", "engine.packed.BULK"
# Read when cuBLAS starts, so it is for a process of its own. (CUBLASLT_WORKSPACE_SIZE is for matmuls with a bias.)
WITHOUT_WORKSPACE = {"CUBLAS_WORKSPACE_CONFIG": ":0:0", "CUBLASLT_WORKSPACE_SIZE": "0"}


class Variant(NamedTuple):
    """Settings, which are options of PackedEngine or constants of a module, and the milliseconds they should save."""

    settings: Settings
    of_pass: float = 0.0
    of_query: float = 0.0
    worth: float = 0.0
    """How many times as fast it must be."""
    rehearsed: bool = True
    """Whether it has kernels that no GPU has run."""


SETTINGS = {
    "graphs as recorded": Variant({ROOM: 16, LONGEST: (128, 512, 2048)}, of_pass=-0.5, rehearsed=False),
    "32,768 tokens a pass": Variant({BUDGET: 32_768, BULK: 1}, of_pass=0.4, rehearsed=False),
    "16,384 tokens in bulk": Variant({BULK: 1}, rehearsed=False),
}
SAVES = {"qkv_attention": (1.0, 0.07), "gate_up": (0.4, 0.0), "few_rows": (0.0, 0.2), "folded_norms": (0.3, 0.0)}
"""What each kernel of MERGED should save of a pass and of a query; one that is not named here is measured too."""
RECORDED = {
    "engine": "an H200 in docs/benchmarks/h200", PASS: 9.64, QUERY: 0.94, names.FROM_TEXTS: 1_413_797,
    names.FROM_IDS: 1_559_183,
}  # fmt: skip


def variants() -> dict[str, Variant]:
    """Return all variants: on a GPU first the kernels that none has shown, one by one and together."""
    if not ON_GPU:
        return SETTINGS
    found = {}
    if any(trial.shown_on for trial in TRIALS.values()):  # so what is served may have some
        found[names.UNMERGED] = Variant({"kernels": FUSED}, rehearsed=False)
    for name in (each.name for each in fields(MERGED) if getattr(MERGED, each.name) is not getattr(FUSED, each.name)):
        worth, saves = TRIALS[name].worth if name in TRIALS else 0.0, SAVES.get(name, (0.0, 0.0))
        if (kernels := replace(FUSED, **{name: getattr(MERGED, name)})) != FUSED:
            found[f"{name} of MERGED"] = Variant({"kernels": kernels}, *saves, worth=worth)
        else:  # it is nothing without others
            kernels = replace(MERGED, **{name: getattr(FUSED, name)})
            found[names.BUT + name] = Variant({"kernels": kernels}, 1.7 - saves[0], 0.27 - saves[1], worth)
    few = {"kernels": replace(FUSED, few_rows=MERGED.few_rows), DEPENDENT: EVERYWHERE}
    found[names.DEPENDENTLY] = Variant(few, of_query=0.28)
    found[names.MERGED] = Variant({"kernels": MERGED}, 1.7, 0.27)
    found["all merged, dependent"] = Variant({"kernels": MERGED, DEPENDENT: EVERYWHERE}, 1.7, 0.35)
    return found | SETTINGS


def load(step: Step, settings: Settings) -> PackedEngine:
    """Return the engine with these settings. Raises AttributeError for a constant that does not exist."""
    with patched(settings) as options:
        return PackedEngine(step.checkpoint, **options)


def measure_variant(step: Step, name: str, variant: Variant, mixed: Sample) -> PackedEngine | None:
    """Write a variant's row, figure by figure, and return its engine; None if it cannot be loaded."""
    start = time.perf_counter()
    if (loaded := step.attempt(("load", name), partial(load, step, variant.settings))) is None:
        return None
    known = {
        names.WORTH: variant.worth, names.predicted(PASS): variant.of_pass, names.predicted(QUERY): variant.of_query
    }  # fmt: skip
    facts = {"engine": loaded.description, "load s": time.perf_counter() - start}
    step.part((names.VARIANTS, name), lambda: facts | {column: value for column, value in known.items() if value})
    batches, work = list(mixed.batches(loaded.batch_tokens)), step.workload
    query = steps.sample(step.checkpoint, [steps.SHORT] * 20, seed=steps.SHORT).texts

    def embed_ids(texts: Sample) -> int:
        loaded.embed(texts.token_ids)
        return int(texts.size["tokens"])

    columns: dict[str, Callable[[], float]] = {
        PASS: lambda: pass_s(loaded, some_of(batches, work.passes)) * names.PASS_TOKENS * 1e3,
        QUERY: lambda: steps.latency(embedder(loaded), query, work.repeats)["p50 ms"],
        names.LASTING: lambda: lasting_s(loaded, batches) * names.PASS_TOKENS * 1e3,
        names.FROM_TEXTS: lambda: steps.throughput(partial(steps.embed_stream, loaded), mixed)["tokens/s"],
        names.FROM_IDS: lambda: steps.throughput(embed_ids, mixed)["tokens/s"],
    }
    for column, measure in columns.items():
        step.part((names.VARIANTS, name, column), measure)
    return loaded


def measure_variants(step: Step) -> None:
    """Measure the engine as it is served, each variant while time is left, and the first again: what may be chance."""
    end = time.monotonic() + step.workload.variants_s
    mixed = mixed_sample(step.checkpoint, step.workload.some_texts)
    measure_variant(step, names.SERVED, Variant({}), mixed)
    step.part((names.VARIANTS, names.RECORDED), RECORDED.copy)
    for name, variant in variants().items():
        fault = steps.rehearsal_fault(step, name) if time.monotonic() < end else "no time was left"
        if fault:
            step.part((names.VARIANTS, name), partial(dict, engine=f"not measured: {fault}"))
        else:
            measure_variant(step, name, variant, mixed)
    measure_variant(step, names.AGAIN, Variant({}), mixed)


def measure_workspace(step: Step) -> None:
    """Measure the engine as it is served, where cuBLAS may not split sums: do the memsets go, and what is a pass?"""
    os.environ |= WITHOUT_WORKSPACE
    mixed = mixed_sample(step.checkpoint, step.workload.some_texts)
    if engine := measure_variant(step, names.NO_WORKSPACE, Variant({}, of_pass=0.1), mixed):
        measure_profile(step, engine, mixed)


def measure_pass(step: Step) -> None:
    """Launch a pass of the fastest variant between the calls that ncu waits for."""
    rows = names.figures_of(read_json(step.out.parents[1] / "gpu_check.json"), "variants", names.VARIANTS)
    known = {names.SERVED: Variant({})} | variants()
    taken_ms = {name: row[PASS] for name, row in rows.items() if PASS in row and name in known}
    fastest = min(taken_ms, key=taken_ms.__getitem__, default=names.SERVED)
    loaded = load(step, known[fastest].settings | {"graphs": False})  # the kernels are the same
    step.part(("one pass", fastest), lambda: {"engine": loaded.description})
    batch = next(mixed_sample(step.checkpoint, step.workload.some_texts).batches(loaded.batch_tokens))
    loaded.launch(batch)()
    with torch.cuda.profiler.profile() if ON_GPU else nullcontext():
        loaded.launch(batch)()


MEASURES = {"variants": measure_variants, "workspace": measure_workspace, "ncu": measure_pass}

if __name__ == "__main__":
    main(MEASURES)
