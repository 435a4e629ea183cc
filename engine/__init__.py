"""Texts to vectors. `load` returns the engine that the environment chooses; `engine.contract` says what one does."""

import os
from pathlib import Path

from engine.contract import Engine
from engine.threads import in_own_thread

__all__ = ["load"]


def load(directory: Path) -> Engine:
    """Load the checkpoint in `directory` onto the GPU if there is one, else onto the CPU.

    The environment variable ENGINE chooses packed (the default) or reference, which is sentence-transformers; DTYPE
    chooses float32, float16 or bfloat16, or auto (the default) for what suits the device. Raises ValueError for any
    other value, CheckpointError or TokenizerError when the checkpoint is not EmbeddingGemma's pipeline, and DeviceError
    when there is a GPU that cannot be used.
    """
    name, dtype = os.environ.get("ENGINE") or "packed", os.environ.get("DTYPE") or "auto"
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(
            f"DTYPE is {dtype!r}; set it to float32, float16, bfloat16 or auto, or leave it unset for auto"
        )
    if name == "packed":
        from engine.model import FORMATS
        from engine.packed import PackedEngine

        return in_own_thread(lambda: PackedEngine(directory, numbers=FORMATS.get(dtype)))
    if name == "reference":
        if dtype == "float16":
            raise ValueError("DTYPE is float16, in which ENGINE=reference overflows; use bfloat16, or ENGINE=packed")
        from engine.reference import ReferenceEngine  # imports transformers: seconds that only this engine pays

        return in_own_thread(lambda: ReferenceEngine(directory, dtype=dtype))
    raise ValueError(f"ENGINE is {name!r}; set it to packed or reference, or leave it unset for packed")
