"""Steps of `lab.benchmarks.gpu`: what the device can do at best, what a pass takes, and which kernels take the time."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.configs import read_architecture
from engine.graphs import cuda_capture
from engine.packed import PackedEngine
from lab.benchmarks.embedders import embedder
from lab.benchmarks.gpu_figures import FLOOR, MIXED, SERVED, TIME_BY_KIND
from lab.benchmarks.gpu_steps import ON_GPU, Ids, Sample, Step, main, mixed_sample, sample
from lab.benchmarks.texts import matmul_flops
from lab.benchmarks.time_shares import by_category, longest_kernels, profiled

DEVICE, DTYPE = ("cuda", torch.float16) if ON_GPU else ("cpu", torch.float32)
# Matmuls of one shape in a row, each with a weight of its own, as in a network of so many layers.
WEIGHTS = 24
FEW_ROWS, SERIES, RUNS = 32, 8, 3
# Some 20 ms, in which the host queues a pass kernel by kernel, or RUNS graphs.
HELD_CYCLES = 40_000_000


def device_s(run: Callable[[], Any], runs: int = RUNS, series: int = SERIES) -> float:
    """Return the seconds that the device takes for a run, the median of some series; on a CPU those of the call.

    The device is held until `runs` runs are queued, so it never waits for the host.
    """
    seconds = []
    for _ in range(1 + series):
        if ON_GPU:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(HELD_CYCLES)
            begin.record()
        start = time.perf_counter()
        results = [run() for _ in range(runs)]  # kept until the device has read what they hold
        taken_s = time.perf_counter() - start
        if ON_GPU:
            end.record()
            end.synchronize()
            taken_s = begin.elapsed_time(end) / 1e3
        results.clear()
        seconds.append(taken_s / runs)
    return median(seconds[1:])  # the first warms up


def tokens_of(batches: Sequence[Sequence[Ids]]) -> int:
    """Return the tokens of batches together."""
    return sum(len(ids) for batch in batches for ids in batch)


def some_of(batches: Sequence[list[Ids]], passes: int) -> Sequence[list[Ids]]:
    """Return at most `passes` batches, from the first to the last."""
    return batches[:: -(-len(batches) // passes)]


def pass_s(engine: PackedEngine, batches: Sequence[list[Ids]]) -> float:
    """Return the device's seconds a token, each batch alone on a device at rest."""
    return sum(device_s(partial(engine.launch, batch), runs=1, series=2) for batch in batches) / tokens_of(batches)


def lasting_s(engine: PackedEngine, batches: Sequence[list[Ids]]) -> float:
    """Return the seconds a token of all batches in a row, where the host is ahead of the device all the time."""
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        waits = [engine.launch(batch) for batch in batches]
        if ON_GPU:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        for wait in waits:
            wait()
    return seconds / tokens_of(batches)


def copy_rate(size: int) -> dict[str, float]:
    """Return the GB/s, read and written together, of copying `size` bytes on the device."""
    source = torch.zeros(size, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return {"GB/s": 2 * size / device_s(lambda: target.copy_(source)) / 1e9}


@torch.inference_mode()
def matmul_s(rows: int, inner: int, columns: int, product: Callable[[Tensor, Tensor], Tensor] = F.linear) -> float:
    """Return the device's seconds for one [rows, inner] @ [inner, columns], launched as part of a CUDA graph."""
    x = torch.randn(rows, inner, dtype=DTYPE, device=DEVICE)
    weights = [torch.randn(columns, inner, dtype=DTYPE, device=DEVICE) for _ in range(WEIGHTS)]

    def multiply() -> Tensor:
        for weight in weights:
            out = product(x, weight)
        return out

    multiply()  # outside the graph: the library sets itself up
    return device_s(cuda_capture()(multiply) if ON_GPU else multiply) / WEIGHTS


def measure_ceilings(step: Step) -> None:
    """Measure copies, a large matmul, a layer's four, and unless one of them fails the floor: their rate together."""
    a, rows = read_architecture(step.checkpoint), step.workload.matmul_rows
    step.part(("copies on the device", "read and written"), partial(copy_rate, step.workload.copied_bytes))
    attended = a.heads * a.head_dim
    shapes = {
        "qkv": (a.hidden, attended + 2 * a.kv_heads * a.head_dim), "out": (attended, a.hidden),
        "gate and up": (a.hidden, 2 * a.intermediate), "down": (a.intermediate, a.hidden),
    }  # fmt: skip
    cube = step.workload.cube
    step.part(
        ("a large matmul", f"{cube:,} cubed"), lambda: {"TFLOP/s": 2 * cube**3 / matmul_s(cube, cube, cube) / 1e12}
    )
    times_s = []

    def measure(inner: int, columns: int) -> dict[str, float]:
        times_s.append(matmul_s(rows, inner, columns))
        tera = 2 * rows * inner * columns / times_s[-1] / 1e12
        return {f"TFLOP/s at {rows:,} rows": tera}

    for name, (inner, columns) in shapes.items():
        step.part(("matmuls", f"{name}, {inner} to {columns}, {DTYPE}"), partial(measure, inner, columns))
    if len(times_s) == len(shapes):
        rate = matmul_flops(a, rows) / len(a.windows) / sum(times_s)
        step.part((FLOOR, SERVED), lambda: {"TFLOP/s": rate / 1e12})


def measure_profile(step: Step, engine: PackedEngine, mixed: Sample) -> None:
    """Measure the time by kind of work and by kernel, of mixed texts."""
    batches = some_of(list(mixed.batches(engine.batch_tokens)), step.workload.passes)
    profile_run(step, MIXED, tokens_of(batches), lambda: [wait() for wait in [engine.launch(each) for each in batches]])


def profile_run(step: Step, name: str, tokens: float, run: Callable[[], Any]) -> None:
    """Run twice and write what the profiler says of the second run."""
    step.attempt(("warm-up", name), run)
    if trace := step.attempt(("profile", name), partial(profiled, run)):
        in_ms = {f"{kind} ms": seconds * 1e3 for kind, seconds in by_category(trace).items()}
        step.part((TIME_BY_KIND, name), partial(dict, {"tokens": tokens} | in_ms))
        step.part((f"kernels, {name}",), partial(longest_kernels, trace.kernels))


def measure_kernels(step: Step) -> None:
    """Measure the time by kind of work and by kernel, of mixed texts and of single texts."""
    if (engine := step.load()) is None:
        return
    measure_profile(step, engine, mixed_sample(step.checkpoint, step.workload.some_texts))
    embed, singles = embedder(engine), sample(step.checkpoint, [32] * max(2, step.workload.repeats // 4), seed=3)
    one_by_one = partial(lambda texts: [embed([text], 1) for text in texts], singles.texts)
    profile_run(step, "single texts of 32 tokens", singles.size["tokens"], one_by_one)


MEASURES = {"kernels": measure_kernels, "ceilings": measure_ceilings}

if __name__ == "__main__":
    main(MEASURES)
