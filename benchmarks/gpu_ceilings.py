"""What the device can do at best, and how long it takes for the engine's passes when it never waits for the host."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from statistics import median
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from benchmarks.gpu_engines import ON_GPU, load, mixed_texts
from benchmarks.gpu_page import FLOOR, PASSES, SERVED
from benchmarks.gpu_parts import Step
from benchmarks.scenarios import flops, matmul_flops
from benchmarks.texts import random_token_ids
from engine.checkpoint import read_architecture
from engine.graphs import cuda_capture
from engine.model import Architecture
from engine.packed import PackedEngine

Result = TypeVar("Result")

# Matmuls of one shape in a row, each with a weight of its own, as in a network of so many layers.
WEIGHTS = 24
FEW_ROWS = 32
SERIES, RUNS = 8, 3
# Some 40 ms, in which the host queues RUNS passes: below the 1,024 kernels after which the driver makes it wait.
HELD_CYCLES = 80_000_000


def device_and_host_s(
    run: Callable[[], Result], finish: Callable[[Result], Any] = lambda _: None
) -> tuple[float, float]:
    """Return the seconds that the device takes for a run, and that the host takes to launch it; medians.

    The device is held until some runs are queued, so it never waits for the host. On a CPU the two are the same.
    """
    seconds = []
    for _ in range(SERIES if ON_GPU else 2):
        if ON_GPU:
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda._sleep(HELD_CYCLES)
            begin.record()
        start = time.perf_counter()
        results = [run() for _ in range(RUNS)]
        device_s = host_s = time.perf_counter() - start
        if ON_GPU:
            end.record()
            end.synchronize()
            device_s = begin.elapsed_time(end) / 1e3
        seconds.append((device_s / RUNS, host_s / RUNS))
        for result in results:
            finish(result)
    device, host = zip(*seconds[1:], strict=True)  # the first warms up
    return median(device), median(host)


def copy_rate(size: int) -> dict[str, float]:
    """Return the GB/s, read and written together, of copying `size` bytes on the device."""
    source = torch.zeros(size, dtype=torch.uint8, device="cuda" if ON_GPU else "cpu")
    target = torch.empty_like(source)
    return {"GB/s": 2 * size / device_and_host_s(lambda: target.copy_(source))[0] / 1e9}


@torch.inference_mode()
def matmul_s(rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """Return the device's seconds for one [rows, inner] @ [inner, columns], launched as part of a CUDA graph."""
    options: dict[str, Any] = {"dtype": dtype, "device": "cuda" if ON_GPU else "cpu"}
    x = torch.randn(rows, inner, **options)
    weights = [torch.randn(columns, inner, **options) for _ in range(WEIGHTS)]

    def multiply() -> torch.Tensor:
        for weight in weights:
            out = F.linear(x, weight)
        return out

    multiply()  # outside the graph: the library sets itself up
    return device_and_host_s(cuda_capture()(multiply) if ON_GPU else multiply)[0] / WEIGHTS


def shapes(a: Architecture) -> dict[str, tuple[int, int]]:
    """Return the inner size and the columns of the four matmuls of a layer."""
    attended = a.heads * a.head_dim
    return {
        "qkv": (a.hidden, attended + 2 * a.kv_heads * a.head_dim),
        "out": (attended, a.hidden),
        "gate_up": (a.hidden, 2 * a.intermediate),
        "down": (a.intermediate, a.hidden),
    }


def measure_matmuls(step: Step, a: Architecture, dtype: torch.dtype) -> float | None:
    """Measure the four shapes; return the FLOP/s of a layer's four together, None if one of them failed."""
    name, rows, times_s = str(dtype).removeprefix("torch."), step.workload.matmul_rows, {}

    def measure(shape: str, inner: int, columns: int) -> dict[str, float]:
        times_s[shape] = matmul_s(rows, inner, columns, dtype)
        tera = 2 * rows * inner * columns / times_s[shape] / 1e12
        few_s = matmul_s(FEW_ROWS, inner, columns, dtype)
        return {f"TFLOP/s at {rows:,} rows": tera, f"us at {FEW_ROWS} rows": few_s * 1e6}

    for shape, (inner, columns) in shapes(a).items():
        row = f"{shape}, {inner} to {columns}, {name}"
        step.part(("matmuls", row), partial(measure, shape, inner, columns))
    if len(times_s) < len(shapes(a)):
        return None
    rate = 2 * rows * sum(inner * columns for inner, columns in shapes(a).values()) / sum(times_s.values())
    step.part(("a layer's matmuls together", name), lambda: {"TFLOP/s": rate / 1e12})
    return rate


def pass_figures(
    engine: PackedEngine, token_ids: list[Sequence[int]], floor_s: Callable[[list[int]], float | None]
) -> dict[str, float | None]:
    """Return what one pass over the texts takes."""
    lengths = [len(ids) for ids in token_ids]
    device_s, host_s = device_and_host_s(partial(engine.launch, token_ids), finish=lambda wait: wait())
    least_s = floor_s(lengths)
    return {
        "texts": len(lengths),
        "tokens": sum(lengths),
        "device ms": device_s * 1e3,
        "host ms to launch": host_s * 1e3,
        "tokens/s": sum(lengths) / device_s,
        "of the floor": least_s and least_s / device_s,
    }


def measure_ceilings(step: Step) -> None:
    """Measure copies and matmuls, then passes of every budget and every graph against the floor that these set."""
    a = read_architecture(step.checkpoint)
    served = torch.float16 if ON_GPU else torch.float32
    copied = step.part(("copies on the device", "read and written"), partial(copy_rate, step.workload.copied_bytes))
    rates = {dtype: measure_matmuls(step, a, dtype) for dtype in dict.fromkeys((served, torch.float16, torch.bfloat16))}
    if rate := rates[served]:
        step.part((FLOOR, SERVED), lambda: {"TFLOP/s": rate / 1e12, "MFLOP a token": matmul_flops(a, 1) / 1e6})
    if (engine := load(step)) is None:
        return

    def floor_s(lengths: list[int]) -> float | None:
        """Return the seconds of all operations at the matmuls' rate, or of reading the weights if that is longer."""
        reading_s = matmul_flops(a, 1) / 2 * served.itemsize / (copied["GB/s"] * 1e9) if copied else 0.0
        return max(sum(flops(a, length) for length in lengths) / rate, reading_s) if rate else None

    mixed = mixed_texts(step.checkpoint, step.workload.some_texts).token_ids
    ends = list(accumulate(len(ids) for ids in mixed))
    for budget in step.workload.budgets:
        batch = sorted(mixed[: sum(end <= budget for end in ends) or 1], key=len)
        step.part((PASSES, f"{budget:,} tokens"), partial(pass_figures, engine, batch, floor_s))
    single = [(length, length) for length in step.workload.single_lengths]
    sizes = [(bucket.tokens, bucket.longest) for bucket in engine.graphs.buckets] if engine.graphs else single
    for tokens, longest in sizes:
        lengths = [n for n in (*[longest] * (tokens // longest), tokens % longest) if n >= 2]
        texts = random_token_ids(a.vocab_size, lengths, copies=1)
        row = f"{tokens:,} tokens, texts of {longest:,}"
        step.part(("passes by graph", row), partial(pass_figures, engine, list(texts), floor_s))
