"""Where the time of a run goes, by torch's profiler: by kind of work and by kernel."""

import math
import re
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

# Parts of the names of kernels (GPU) and operators (CPU); the first category that matches counts, as FlashAttention's
# kernels have cutlass in their names too.
MATMUL = ("gemm", "cutlass", "nvjet", "xmma", "cublas", "splitk", "linear", "::mm", "addmm", "matmul", "bmm")
CATEGORIES = (("attention", ("flash", "fmha", "attention")), ("matmul", MATMUL), ("copies", ("memcpy", "memset")))
NOISE = re.compile(r"^void |\(anonymous namespace\)::|\b(at|native|c10|cutlass|pytorch_flash)::")
LONGEST_NAME = 70
# Kernels that a stream holds follow each other in microseconds.
LONGEST_GAP_US = 50.0


def kernel_category(name: str) -> str:
    """Return the category of a kernel or operator by its name, elementwise if none matches."""
    name = name.lower()
    return next((category for category, parts in CATEGORIES if any(part in name for part in parts)), "elementwise")


class Trace(NamedTuple):
    """A profiled run: calls and seconds by kernel (on a CPU by operator), the wall clock's seconds and those of gaps.

    The profiler slows the host down, so the wall clock's seconds are an upper bound.
    """

    kernels: dict[str, tuple[int, float]]
    wall_s: float
    gaps_s: float
    """Between kernels that the device had already been given; longer pauses are waits for the host."""


def profiled(run: Callable[[], Any]) -> Trace:
    """Run once under the profiler."""
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
    ranges = [event.time_range for event in profiler.events() or [] if event.device_type.name == "CUDA"]
    return Trace(kernels, wall, short_gaps([(each.start, each.end) for each in ranges]) / 1e6)


def short_gaps(ranges: Iterable[tuple[float, float]]) -> float:
    """Return the time between ranges in which none of them is, in microseconds, but for gaps beyond LONGEST_GAP_US."""
    gaps, last = 0.0, -math.inf
    for start, end in sorted(ranges):
        gaps += start - last if last < start <= last + LONGEST_GAP_US else 0.0
        last = max(last, end)
    return gaps


def by_category(trace: Trace) -> dict[str, float]:
    """Return the seconds by category, of `gaps` between kernels, and of `host`, the rest of the wall clock's, `wall`.

    `host` is the time in which a GPU had nothing to do, and on a CPU the time outside torch's operators.
    """
    seconds = dict.fromkeys(("matmul", "attention", "elementwise", "copies"), 0.0)
    for name, (_, taken_s) in trace.kernels.items():
        seconds[kernel_category(name)] += taken_s
    seconds["gaps"] = trace.gaps_s
    return seconds | {"host": max(0.0, trace.wall_s - sum(seconds.values())), "wall": trace.wall_s}


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
    """Return a kernel's name without namespaces, cut after LONGEST_NAME characters."""
    name = NOISE.sub("", kernel)
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
