"""Texts to vectors. `load` returns the engine that the environment chooses; `engine.contract` says what engines do.

Only functions import torch here: some processes must set variables before (see `engine.device`), others do without it.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from engine import memory
from engine.contract import Engine
from engine.threads import in_own_thread, limit_threads

if TYPE_CHECKING:
    from engine.model import NumberFormat

__all__ = ["load", "number_format"]


def load(directory: Path, dtype: str | None = None, measured: Path | None = None) -> Engine:
    """Load the checkpoint in `directory` onto the GPU, or onto the CPU where there is none.

    The environment variable ENGINE chooses packed (the default) or reference, which is sentence-transformers. See
    `number_format` for `dtype`, `measured` and errors; also raises TokenizerError when the checkpoint is not
    EmbeddingGemma's, and DeviceError when the GPU cannot be used or memory is clearly too small.
    """
    memory.check(directory)
    limit_threads()
    return in_own_thread(lambda: _load(directory, _asked(dtype), measured))


def _load(directory: Path, dtype: str, measured: Path | None) -> Engine:
    if _is_reference():
        if dtype == "float16":
            raise ValueError("DTYPE is float16, in which ENGINE=reference overflows; use bfloat16, or ENGINE=packed")
        from engine.reference import ReferenceEngine  # imports transformers: seconds that only this engine pays

        return ReferenceEngine(directory, dtype=dtype)
    from engine.packed import PackedEngine

    return PackedEngine(directory, numbers=_numbers(directory, dtype, measured), measured=measured)


def number_format(directory: Path, dtype: str | None = None, measured: Path | None = None) -> str:
    """Return the number format that an engine on this machine computes in: float32, float16 or bfloat16.

    `dtype` is one of these or auto; None stands for the environment variable DTYPE, by default auto. On a CPU auto is
    the faster of float32 and bfloat16, which are timed unless the JSON file `measured` has their ratio; the result is
    written there. (On a GPU auto falls back from float16 to bfloat16 for a checkpoint that overflows.) Raises
    ValueError for an unknown dtype or engine, and CheckpointError when the checkpoint is not EmbeddingGemma's pipeline.
    """
    import torch

    limit_threads()
    asked = _asked(dtype)
    if _is_reference() and asked == "auto":
        return "bfloat16" if torch.cuda.is_available() else "float32"
    numbers = in_own_thread(lambda: _numbers(directory, asked, measured))
    return "float16" if numbers is None else str(numbers.dtype).removeprefix("torch.")


def _numbers(directory: Path, dtype: str, measured: Path | None) -> "NumberFormat | None":
    """Return the packed engine's format; None on a GPU where the engine chooses."""
    import torch

    from engine.checkpoint import read_architecture
    from engine.model import FORMATS
    from engine.native.choice import faster_format

    if dtype != "auto" or torch.cuda.is_available():  # unlike choose_device, this makes no context
        return FORMATS.get(dtype)
    return faster_format(read_architecture(directory), measured)


def _asked(dtype: str | None) -> str:
    dtype = (dtype or os.environ.get("DTYPE", "")).strip() or "auto"
    if dtype not in ("auto", "float32", "float16", "bfloat16"):
        raise ValueError(
            f"DTYPE is {dtype[:80]!r}; set it to float32, float16, bfloat16 or auto, or leave it unset for auto"
        )
    return dtype


def _is_reference() -> bool:
    name = os.environ.get("ENGINE", "").strip() or "packed"
    if name not in ("packed", "reference"):
        raise ValueError(f"ENGINE is {name[:80]!r}; set it to packed or reference, or leave it unset for packed")
    return name == "reference"
