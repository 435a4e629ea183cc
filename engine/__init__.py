"""Texts to vectors. `load` gives an engine; what an engine is, is said by `Engine`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.tokenizer import Tokenizer

DIMENSIONS = 768
EFFECTIVE_WINDOW = 257


class CheckpointError(ValueError):
    """A checkpoint that would give other vectors than EmbeddingGemma's pipeline: what was expected, what was found."""


class Engine(Protocol):
    """Token ids to vectors. An engine is used by one thread at a time; its tokenizer by any number."""

    tokenizer: Tokenizer
    number_format: str
    """What the layers compute in: float32, float16 or bfloat16."""
    description: str
    """Engine, number format and device in words, for the logs."""

    def embed(self, token_ids: Sequence[Sequence[int]]) -> np.ndarray:
        """Return the vectors before the final normalisation: float32 [n, 768], in the order of the texts."""
        ...


def load(directory: Path) -> Engine:
    """Load the checkpoint in `directory` onto the GPU if there is one, else the CPU.

    The environment variable ENGINE chooses: packed (the default) or reference, which is sentence-transformers. Raises
    ValueError for any other, and CheckpointError or TokenizerError when it is not EmbeddingGemma's pipeline.
    """
    name = os.environ.get("ENGINE") or "packed"
    if name == "packed":
        from engine.packed import PackedEngine

        return PackedEngine(directory)
    if name == "reference":
        from engine.reference import ReferenceEngine  # imports transformers: seconds that only this engine pays

        return ReferenceEngine(directory)
    raise ValueError(f"ENGINE is {name!r}; set it to packed or reference, or leave it unset for packed")
