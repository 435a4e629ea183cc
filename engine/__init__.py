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

# What the packed engine alone computes in.
NOT_IN_REFERENCE = {"float16": "in which ENGINE=reference overflows", "int8": "which ENGINE=reference does not have"}


def load(directory: Path, dtype: str | None = None, measured: Path | None = None) -> Engine:
    """Load the checkpoint in `directory` onto the GPU, or onto the CPU where there is none.

    The environment variable ENGINE chooses packed (the default) or reference, which is sentence-transformers. See
    `number_format` for `dtype`, `measured` and errors; also raises TokenizerError when the checkpoint is not
    EmbeddingGemma's, and DeviceError when the GPU cannot be used or memory is clearly too small.
    """
    memory.check(directory)
    limit_threads()
    loaded = in_own_thread(lambda: _load(directory, _asked(dtype), measured))
    memory.give_back()
    return loaded


def _load(directory: Path, dtype: str, measured: Path | None) -> Engine:
    if _is_reference():
        from engine.reference import ReferenceEngine  # imports transformers: seconds that only this engine pays

        return ReferenceEngine(directory, dtype=dtype)
    from engine.packed import PackedEngine

    return PackedEngine(directory, numbers=_numbers(directory, dtype, measured), measured=measured)


def number_format(directory: Path, dtype: str | None = None, measured: Path | None = None) -> str:
    """Return the number format that an engine on this machine computes in: float32, float16, bfloat16 or int8.

    `dtype` is one of these or auto, which is never int8; None stands for the environment variable DTYPE, by default
    auto. On a CPU auto is the faster of float32 and bfloat16, which are timed unless the JSON file `measured` has their
    ratio; the result is written there. (On a GPU auto falls back from float16 to bfloat16 for a checkpoint that
    overflows.) Raises ValueError for a dtype or engine that is unknown or does not go with the other, DeviceError for
    int8 on a machine that cannot compute it, and CheckpointError when the checkpoint is not EmbeddingGemma's pipeline.
    """
    import torch

    limit_threads()
    asked = _asked(dtype)
    if _is_reference() and asked == "auto":
        return "bfloat16" if torch.cuda.is_available() else "float32"
    numbers = in_own_thread(lambda: _numbers(directory, asked, measured))
    return "float16" if numbers is None else numbers.name


def _numbers(directory: Path, dtype: str, measured: Path | None) -> "NumberFormat | None":
    """Return the packed engine's format; None on a GPU where the engine chooses."""
    import torch

    from engine.configs import read_architecture
    from engine.model import FORMATS
    from engine.native.choice import faster_format, require_int8

    on_gpu = torch.cuda.is_available()  # unlike choose_device, this makes no context
    if dtype == "int8":
        require_int8(read_architecture(directory), on_gpu)
    if dtype != "auto" or on_gpu:
        return FORMATS.get(dtype)
    return faster_format(read_architecture(directory), measured)


def _asked(dtype: str | None) -> str:
    dtype = (dtype or os.environ.get("DTYPE", "")).strip() or "auto"
    if dtype not in ("auto", "float32", "float16", "bfloat16", "int8"):
        raise ValueError(
            f"DTYPE is {dtype[:80]!r}; set it to float32, float16, bfloat16, int8 or auto, or leave it unset for auto"
        )
    if _is_reference() and dtype in NOT_IN_REFERENCE:
        raise ValueError(f"DTYPE is {dtype}, {NOT_IN_REFERENCE[dtype]}; use bfloat16, or ENGINE=packed")
    return dtype


def _is_reference() -> bool:
    name = os.environ.get("ENGINE", "").strip() or "packed"
    if name not in ("packed", "reference"):
        raise ValueError(f"ENGINE is {name[:80]!r}; set it to packed or reference, or leave it unset for packed")
    return name == "reference"
