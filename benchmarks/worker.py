"""One engine in a process of its own, driven by `benchmarks.engines` over pipes: a JSON object a line, in and out.

{"texts": [...], "batch_size": 32}   ->  {"seconds": 1.25}
{"profile": [...], "batch_size": 32} ->  {"matmul": 0.8, "attention": 0.1, ..., "wall": 1.25}   seconds
{"matmul": true}                     ->  {"flops": 7.9e14}       what the device's matmul reaches at large size
{"report": true}                     ->  {"description": ..., "memory_bytes": ..., "gpu_memory_bytes": ...}
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.time_shares import time_shares
from engine.contract import Engine

Embed = Callable[[list[str], int], np.ndarray]


def embedder(engine: Engine) -> Embed:
    """Return an engine as a function of texts, normalising as sentence-transformers does."""

    def embed(texts: list[str], batch_size: int = 0) -> np.ndarray:
        tokenized = engine.tokenizer.encode([""] * len(texts), texts)
        vectors = engine.embed([text.ids for text in tokenized])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    return embed


def load_packed(directory: Path) -> tuple[Embed, str, torch.dtype]:
    """Return the packed engine as a function of texts."""
    from engine.packed import PackedEngine

    engine = PackedEngine(directory)
    return embedder(engine), engine.description, engine.network.numbers.dtype


def load_reference(directory: Path) -> tuple[Embed, str, torch.dtype]:
    """Return sentence-transformers as its users call it, in bfloat16 on a GPU and float32 on a CPU."""
    from sentence_transformers import SentenceTransformer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    model = SentenceTransformer(str(directory), device=device, local_files_only=True, model_kwargs=options)

    def embed(texts: list[str], batch_size: int) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False))

    return embed, f"sentence-transformers, {str(dtype).removeprefix('torch.')}, {device}", dtype


LOADERS = {"packed": load_packed, "reference": load_reference}


@torch.inference_mode()
def matmul_rate(dtype: torch.dtype) -> float:
    """Return the floating point operations a second of the device's best square matmul, of a size that fills it."""
    from engine.model import Linear

    on_gpu = torch.cuda.is_available()
    size = 8192 if on_gpu else 2048
    with torch.device("cuda" if on_gpu else "cpu"):
        linear, x = Linear(size, size, dtype), torch.randn(size, size, dtype=dtype)
        linear.weight.normal_()
    linear.pack()
    best = float("inf")
    for _ in range(50):  # the best of many: other programs may be running
        _synchronize()
        start = time.perf_counter()
        linear(x)
        _synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """Load the engine named in the first argument from the directory in the second, embed one text, then obey."""
    # Libraries print to standard output; the answers need it to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    embed, description, dtype = LOADERS[sys.argv[1]](Path(sys.argv[2]))
    embed(["Which planet is known as the Red Planet?"], 1)
    print("{}", file=answers)
    for line in sys.stdin:
        command: dict[str, Any] = json.loads(line)
        if "texts" in command:
            start = time.perf_counter()
            embed(command["texts"], command["batch_size"])
            answer: dict[str, Any] = {"seconds": time.perf_counter() - start}
        elif "profile" in command:
            answer = time_shares(partial(embed, command["profile"], command["batch_size"]))
        elif "matmul" in command:
            answer = {"flops": matmul_rate(dtype)}
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
            gpu_peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            answer = {"description": description, "memory_bytes": peak, "gpu_memory_bytes": gpu_peak}
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()
