"""Engines as functions of texts that return normalised vectors, as sentence-transformers does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import engine
import weights
from engine.contract import Engine

Embed = Callable[[list[str], int], np.ndarray]
"""Texts and a batch size (which our own engines do not heed) to unit vectors, float32 [n, 768]."""

Loaded = tuple[Embed, str, torch.dtype]
"""The function, its engine's description and the dtype that the engine computes in."""


def embedder(loaded: Engine) -> Embed:
    """Return an engine of ours as a function of texts."""

    def embed(texts: list[str], batch_size: int = 0) -> np.ndarray:
        tokenized = loaded.tokenizer.encode([""] * len(texts), texts)
        vectors = loaded.embed([text.ids for text in tokenized])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    return embed


def load_packed(directory: Path, **options: Any) -> Loaded:
    """Return the packed engine with PackedEngine's `options`; without them as it is served."""
    from engine.packed import PackedEngine

    loaded = PackedEngine(directory, **options) if options else engine.load(directory, measured=weights.measurements())
    return embedder(loaded), loaded.description, getattr(torch, loaded.number_format)


def load_reference(directory: Path, dtype: torch.dtype | None = None) -> Loaded:
    """Return sentence-transformers as its users call it; by default in bfloat16 on a GPU and float32 on a CPU."""
    from sentence_transformers import SentenceTransformer

    device, usual = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    dtype = dtype or usual
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    model = SentenceTransformer(str(directory), device=device, local_files_only=True, model_kwargs=options)

    def embed(texts: list[str], batch_size: int) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False))

    return embed, f"sentence-transformers, {str(dtype).removeprefix('torch.')}, {device}", dtype
