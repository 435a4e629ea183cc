"""The engines that benchmarks compare, each as a function from texts to unit vectors, and how far these differ."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import engine
import weights
from engine.configs import is_second
from engine.contract import Engine
from engine.model import BFLOAT16, FLOAT32, INT8
from engine.packed import PackedEngine

Embedder = Callable[[list[str], int], np.ndarray]
"""Texts and a batch size (which our own engines ignore) to unit vectors, float32 [n, 768]."""


class Loaded(NamedTuple):
    """An engine's function, its description and the dtype that it computes in."""

    embed: Embedder
    description: str
    dtype: torch.dtype


def embedder(loaded: Engine) -> Embedder:
    """Return an engine of ours as a function of texts."""

    def embed(texts: list[str], batch_size: int = 0) -> np.ndarray:
        tokenized = loaded.tokenizer.encode([""] * len(texts), texts)
        vectors = loaded.embed([text.ids for text in tokenized])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    return embed


def load_packed(directory: Path, **options: Any) -> Loaded:
    """Return the packed engine with PackedEngine's `options`; without them as it is served."""
    loaded = PackedEngine(directory, **options) if options else engine.load(directory, measured=weights.measurements())
    return Loaded(embedder(loaded), loaded.description, getattr(torch, loaded.number_format))


def load_reference(directory: Path, dtype: torch.dtype | None = None) -> Loaded:
    """Return sentence-transformers as its users call it; by default in bfloat16 on a GPU and float32 on a CPU."""
    from sentence_transformers import SentenceTransformer

    from engine.reference import text_pipeline

    device, usual = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    dtype = dtype or usual
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    if is_second(directory):
        model = text_pipeline(directory, device, **options)
    else:
        model = SentenceTransformer(str(directory), device=device, local_files_only=True, model_kwargs=options)

    def embed(texts: list[str], batch_size: int) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False))

    return Loaded(embed, f"sentence-transformers, {str(dtype).removeprefix('torch.')}, {device}", dtype)


def errors(vectors: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 - cosine and the relative error of the norm of each row, in float64."""
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return 1 - (a * b).sum(axis=1) / (norm_a * norm_b), np.abs(norm_a / norm_b - 1)


LOADERS: dict[str, Callable[[Path], Loaded]] = {
    "packed": load_packed,
    "packed-float32": partial(load_packed, numbers=FLOAT32),
    "packed-bfloat16": partial(load_packed, numbers=BFLOAT16),
    "packed-int8": partial(load_packed, numbers=INT8),
    "plain": partial(load_packed, numbers=FLOAT32, native=False),  # PyTorch's own operators
    "reference": load_reference,
    "reference-bfloat16": partial(load_reference, dtype=torch.bfloat16),
}
