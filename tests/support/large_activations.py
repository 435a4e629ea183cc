"""A checkpoint whose activations float16 cannot hold, though its vectors are those of the small one."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from weights import SMALL

SOME_OVERFLOW, ALL_OVERFLOW = 13, 16


def with_larger_activations(directory: Path, doublings: int) -> Path:
    """Return a copy of the small checkpoint whose MLPs compute 2**doublings as much, which the next norm takes away.

    With SOME_OVERFLOW float16 cannot hold some random texts, with ALL_OVERFLOW none.
    """
    shutil.copytree(SMALL, directory)
    weights = load_file(directory / "model.safetensors")
    scaled = {name: x * 2.0**doublings if "up_proj" in name else x for name, x in weights.items()}
    save_file(scaled, directory / "model.safetensors", metadata={"format": "pt"})
    return directory
