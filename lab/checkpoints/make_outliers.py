"""Write a copy of a checkpoint in which some channels are 30 to 100 times as large, for tests of 8-bit integers.

    python -m lab.checkpoints.make_outliers checkpoints/small /tmp/outliers

A channel's gain in the norms before attention and MLP is multiplied, and its column in the matrices that read the norm
divided, so float32 vectors stay the same. Trained models of this family have such channels.
"""

import argparse
import logging
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fetching.files import CANARIES, RECORD

logger = logging.getLogger(__name__)

CHANNELS = 6
"""How many channels of each norm are made larger."""
TIMES = (30.0, 100.0)
READERS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "pre_feedforward_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
"""The matrices that read each norm."""


def make(source: Path, out: Path, seed: int = 0) -> None:
    """Write the checkpoint into the new or empty directory `out`, its network in float32, without hashes of the source.

    Raises ValueError for a directory with files in it, and OSError where `source` is no checkpoint.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new directory")
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.float() for name, tensor in load_file(source / "model.safetensors").items()}
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns(CANARIES, RECORD))
    for layer in sorted({name.split(".")[1] for name in weights if name.startswith("layers.")}, key=int):
        for norm, readers in READERS.items():
            gain = weights[f"layers.{layer}.{norm}.weight"]  # what it adds to 1
            factors = torch.ones_like(gain)
            larger = torch.randperm(len(gain), generator=generator)[:CHANNELS]
            factors[larger] = torch.empty(CHANNELS).uniform_(*TIMES, generator=generator)
            gain.add_(1.0).mul_(factors).sub_(1.0)
            for reader in readers:
                weights[f"layers.{layer}.{reader}.weight"].div_(factors)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="a checkpoint's directory")
    parser.add_argument("out", type=Path, help="new directory to write")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    make(args.source, args.out, args.seed)
    logger.info("wrote %s: %d channels of each norm are %g to %g times as large", args.out, CHANNELS, *TIMES)


if __name__ == "__main__":
    main()
