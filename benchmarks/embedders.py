"""Engines as functions of texts that return normalised vectors, as sentence-transformers does."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from engine.contract import Engine

Embed = Callable[[list[str], int], np.ndarray]
"""Texts and a batch size (which only the reference heeds) to unit vectors, float32 [n, 768]."""


def embedder(engine: Engine) -> Embed:
    """Return an engine of ours as a function of texts."""

    def embed(texts: list[str], batch_size: int = 0) -> np.ndarray:
        tokenized = engine.tokenizer.encode([""] * len(texts), texts)
        vectors = engine.embed([text.ids for text in tokenized])
        return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))

    return embed


def load_packed(directory: Path) -> tuple[Embed, str, torch.dtype]:
    """Return the packed engine, its description and the dtype that it computes in."""
    from engine.packed import PackedEngine

    engine = PackedEngine(directory)
    return embedder(engine), engine.description, engine.network.numbers.dtype


def load_reference(directory: Path, dtype: torch.dtype | None = None) -> tuple[Embed, str, torch.dtype]:
    """Return sentence-transformers as its users call it; by default in bfloat16 on a GPU and float32 on a CPU."""
    from sentence_transformers import SentenceTransformer

    device, usual = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    dtype = dtype or usual
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    model = SentenceTransformer(str(directory), device=device, local_files_only=True, model_kwargs=options)

    def embed(texts: list[str], batch_size: int) -> np.ndarray:
        return np.asarray(model.encode(texts, batch_size=batch_size, show_progress_bar=False))

    return embed, f"sentence-transformers, {str(dtype).removeprefix('torch.')}, {device}", dtype


LOADERS = {"packed": load_packed, "reference": load_reference}
