"""Where the time of a run goes, by torch's profiler: matmul, attention, what lies between, copies, the host."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# Parts of the names of kernels (GPU) and operators (CPU); the first row that matches counts. FlashAttention's kernels
# have cutlass in their names too.
MATMUL = ("gemm", "cutlass", "nvjet", "xmma", "cublas", "splitk", "linear", "::mm", "addmm", "matmul", "bmm")
KINDS = (("attention", ("flash", "fmha", "attention")), ("matmul", MATMUL), ("copies", ("memcpy", "memset")))


def kind_of(name: str) -> str:
    """Return what a kernel or operator of that name does; elementwise where nothing else is known of it."""
    lower = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lower for part in parts)), "elementwise")


def time_shares(run: Callable[[], Any]) -> dict[str, float]:
    """Run once and return the seconds by kind; `host` is what is left of the wall clock's time, `wall`.

    On a GPU, the time in which the device did nothing; on a CPU, that which no operator of torch accounts for. The
    profiler slows the host down, so that share is an upper bound.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    seconds = dict.fromkeys(("matmul", "attention", "elementwise", "copies"), 0.0)
    for event in profiler.key_averages():
        if on_gpu and event.device_type.name == "CUDA":
            seconds[kind_of(event.key)] += event.self_device_time_total / 1e6
        elif not on_gpu:
            seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return seconds | {"host": max(0.0, wall - sum(seconds.values())), "wall": wall}


def in_percent(seconds: dict[str, float]) -> str:
    """Return the shares in words, the largest first."""
    parts = sorted(((s, kind) for kind, s in seconds.items() if kind != "wall"), reverse=True)
    return ", ".join(f"{kind} {s / seconds['wall']:.0%}" for s, kind in parts)
