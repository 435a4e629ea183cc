"""Where the time of a run goes, by torch's profiler: matmul, attention, elementwise work, copies, the host."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# Parts of the names of kernels (GPU) and operators (CPU); the first category that matches counts, as FlashAttention's
# kernels have cutlass in their names too.
MATMUL = ("gemm", "cutlass", "nvjet", "xmma", "cublas", "splitk", "linear", "::mm", "addmm", "matmul", "bmm")
CATEGORIES = (("attention", ("flash", "fmha", "attention")), ("matmul", MATMUL), ("copies", ("memcpy", "memset")))


def kernel_category(name: str) -> str:
    """Return what a kernel or operator of that name does, elementwise if no category matches."""
    name = name.lower()
    return next((category for category, parts in CATEGORIES if any(part in name for part in parts)), "elementwise")


def time_shares(run: Callable[[], Any]) -> dict[str, float]:
    """Run once and return the seconds by category; `host` is the rest of the wall clock's time, `wall`.

    `host` is the time in which a GPU did nothing, and on a CPU the time outside torch's operators. The profiler slows
    the host down, so it is an upper bound.
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
            seconds[kernel_category(event.key)] += event.self_device_time_total / 1e6
        elif not on_gpu:
            seconds[kernel_category(event.key)] += event.self_cpu_time_total / 1e6
    return seconds | {"host": max(0.0, wall - sum(seconds.values())), "wall": wall}


def in_percent(seconds: dict[str, float]) -> str:
    """Return the shares in words, the largest first."""
    parts = sorted(((s, category) for category, s in seconds.items() if category != "wall"), reverse=True)
    return ", ".join(f"{category} {s / seconds['wall']:.0%}" for s, category in parts)
