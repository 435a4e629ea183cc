"""The functions that `benchmarks.engines` calls in an engine's own process, `load` first."""

import os
import resource
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.embedders import Embed
from benchmarks.loaders import LOADERS
from benchmarks.time_shares import time_shares

_embed: Embed
_dtype: torch.dtype


def load(engine: str, checkpoint: Path) -> str:
    """Load the engine, embed one text and return the engine's description."""
    global _embed, _dtype
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries draw progress bars
    _embed, description, _dtype = LOADERS[engine](checkpoint)
    _embed(["Which planet is known as the Red Planet?"], 1)
    return description


def embed_s(texts: list[str], batch_size: int) -> float:
    """Embed the texts and return the seconds that it took."""
    start = time.perf_counter()
    _embed(texts, batch_size)
    return time.perf_counter() - start


def vectors(texts: list[str], batch_size: int) -> np.ndarray:
    """Return the texts' unit vectors, float32 [n, 768]."""
    return _embed(texts, batch_size)


def profile(texts: list[str], batch_size: int) -> dict[str, float]:
    """Embed the texts under torch's profiler and return the seconds by category."""
    return time_shares(partial(_embed, texts, batch_size))


def peak_memory() -> dict[str, int]:
    """Return the most memory that the process has held, in bytes, on host and GPU."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"memory_bytes": host, "gpu_memory_bytes": gpu}


@torch.inference_mode()
def matmul_flops() -> float:
    """Return the operations a second of a square matmul large enough to fill the device, the best of 50 runs."""
    from engine.model import Linear

    on_gpu = torch.cuda.is_available()
    size = 8192 if on_gpu else 2048
    with torch.device("cuda" if on_gpu else "cpu"):
        linear, x = Linear(size, size, _dtype), torch.randn(size, size, dtype=_dtype)
        linear.weight.normal_()
    linear.pack()
    synchronize: Any = torch.cuda.synchronize if on_gpu else lambda: None
    best_s = float("inf")
    for _ in range(50):  # other programs may be running
        synchronize()
        start = time.perf_counter()
        linear(x)
        synchronize()
        best_s = min(best_s, time.perf_counter() - start)
    return 2 * size**3 / best_s
