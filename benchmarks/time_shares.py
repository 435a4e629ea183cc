"""Where the time of a run goes, by torch's profiler: matmul, attention, elementwise work, copies, the host; kernels."""

import re
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

# Parts of the names of kernels (GPU) and operators (CPU); the first category that matches counts, as FlashAttention's
# kernels have cutlass in their names too.
MATMUL = ("gemm", "cutlass", "nvjet", "xmma", "cublas", "splitk", "linear", "::mm", "addmm", "matmul", "bmm")
CATEGORIES = (("attention", ("flash", "fmha", "attention")), ("matmul", MATMUL), ("copies", ("memcpy", "memset")))
NOISE = re.compile(r"^void |\(anonymous namespace\)::|\b(at|native|c10|cutlass|pytorch_flash)::")
LONGEST_NAME = 70


def kernel_category(name: str) -> str:
    """Return what a kernel or operator of that name does, elementwise if no category matches."""
    name = name.lower()
    return next((category for category, parts in CATEGORIES if any(part in name for part in parts)), "elementwise")


def profiled(run: Callable[[], Any]) -> tuple[dict[str, tuple[int, float]], float]:
    """Run once and return each kernel's (on a CPU operator's) number of calls and seconds by name, and the wall's.

    The profiler slows the host down, so the wall clock's seconds are an upper bound.
    """
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        run()
        if on_gpu:
            torch.cuda.synchronize()
        wall = time.perf_counter() - start
    kernels = {}
    for event in profiler.key_averages():
        if on_gpu and event.device_type.name == "CUDA":
            kernels[event.key] = (event.count, event.self_device_time_total / 1e6)
        elif not on_gpu:
            kernels[event.key] = (event.count, event.self_cpu_time_total / 1e6)
    return kernels, wall


def time_shares(run: Callable[[], Any]) -> dict[str, float]:
    """Run once and return the seconds by category; see `by_category`."""
    return by_category(*profiled(run))


def by_category(kernels: dict[str, tuple[int, float]], wall: float) -> dict[str, float]:
    """Return the seconds by category; `host` is the rest of the wall clock's time, `wall`.

    `host` is the time in which a GPU did nothing, and on a CPU the time outside torch's operators; an upper bound.
    """
    seconds = dict.fromkeys(("matmul", "attention", "elementwise", "copies"), 0.0)
    for name, (_, taken_s) in kernels.items():
        seconds[kernel_category(name)] += taken_s
    return seconds | {"host": max(0.0, wall - sum(seconds.values())), "wall": wall}


def longest_kernels(kernels: dict[str, tuple[int, float]], most: int = 25) -> dict[str, dict[str, float]]:
    """Return calls, milliseconds and share of all kernels' time of those that took longest, by shortened name."""
    merged: dict[str, tuple[int, float]] = {}
    for name, (count, taken_s) in kernels.items():
        calls, seconds = merged.get(short_name(name), (0, 0.0))
        merged[short_name(name)] = calls + count, seconds + taken_s
    total = sum(seconds for _, seconds in merged.values())
    longest = sorted(merged.items(), key=lambda kernel: kernel[1][1], reverse=True)[:most]
    return {name: {"calls": n, "ms": s * 1e3, "share": s / total if total else 0.0} for name, (n, s) in longest}


def short_name(kernel: str) -> str:
    """Return a kernel's name without namespaces, and cut where template arguments go on and on."""
    name = NOISE.sub("", kernel)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def in_percent(seconds: dict[str, float]) -> str:
    """Return the shares in words, the largest first."""
    parts = sorted(((s, category) for category, s in seconds.items() if category != "wall"), reverse=True)
    return ", ".join(f"{category} {s / seconds['wall']:.0%}" for s, category in parts)
