"""Measure what 16-bit arithmetic costs: the packed engine's vectors in each number format against float32.

python -m benchmarks.number_formats checkpoints/small
python -m benchmarks.number_formats /tmp/random --lengths 8,32,128 --device cpu
"""

import argparse
import logging
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import table
from benchmarks.texts import random_token_ids
from engine.model import BFLOAT16, FLOAT16, FLOAT32, NumberFormat
from engine.packed import PackedEngine

logger = logging.getLogger(__name__)

FORMATS = {
    "bfloat16": BFLOAT16,
    "float16, rescaled": FLOAT16,
    "float16, as it is": NumberFormat(torch.float16),
}


def errors(vectors: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 - cosine and the relative error of the norm of each row, in float64."""
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return 1 - (a * b).sum(axis=1) / (norm_a * norm_b), np.abs(norm_a / norm_b - 1)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--lengths", default="8,32,128,300", help="tokens of the texts")
    parser.add_argument("--copies", type=int, default=2, help="texts of each length")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: the GPU if there is one")
    args = parser.parse_args()
    exact = PackedEngine(args.checkpoint, args.device, FLOAT32)
    lengths = [int(length) for length in args.lengths.split(",")]
    texts = random_token_ids(exact.network.architecture.vocab_size, lengths, args.copies)
    expected = exact.embed(texts)
    rows = []
    for name, numbers in FORMATS.items():
        cosine, norm = errors(PackedEngine(args.checkpoint, args.device, numbers).embed(texts), expected)
        rows.append([name, *(f"{error:.2e}" for error in (np.median(cosine), cosine.max(), norm.max()))])
    logger.info("%s", table(["", "1-cos, median", "1-cos, worst", "norm, worst"], rows))


if __name__ == "__main__":
    main()
