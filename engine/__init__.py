"""Texts to vectors. `load` returns the engine that the environment chooses; `engine.contract` says what one does."""

import os
from pathlib import Path

from engine.contract import Engine
from engine.threads import in_own_thread

__all__ = ["load"]


def load(directory: Path) -> Engine:
    """Load the checkpoint in `directory` onto the GPU if there is one, else onto the CPU.

    The environment variable ENGINE chooses: packed (the default) or reference, which is sentence-transformers. Raises
    ValueError for any other value, CheckpointError or TokenizerError when the checkpoint is not EmbeddingGemma's
    pipeline, and DeviceError when there is a GPU that cannot be used.
    """
    name = os.environ.get("ENGINE") or "packed"
    if name == "packed":
        from engine.packed import PackedEngine

        return in_own_thread(lambda: PackedEngine(directory))
    if name == "reference":
        from engine.reference import ReferenceEngine  # imports transformers: seconds that only this engine pays

        return in_own_thread(lambda: ReferenceEngine(directory))
    raise ValueError(f"ENGINE is {name!r}; set it to packed or reference, or leave it unset for packed")
