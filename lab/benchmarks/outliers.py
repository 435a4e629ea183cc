"""Measure what large channels cost in 8-bit integers, with scales moved from activations to weights and without.

Beside it stands the head alone in 8 bits, which the engine leaves in float32.

python -m lab.checkpoints.make_outliers checkpoints/small /tmp/outliers
python -m lab.benchmarks.outliers /tmp/outliers --pairs stsb-en-test.csv
"""

import argparse
import logging
import math
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import engine.int8
from engine.linear import Linear
from engine.model import FLOAT32, INT8
from engine.packed import PackedEngine
from lab.benchmarks.embedders import errors
from lab.benchmarks.number_formats import read_pairs, spearman
from lab.judging.variants import rounded
from lab.report import table

logger = logging.getLogger(__name__)


def unmoved(checkpoint: Path) -> PackedEngine:
    """Return the engine in 8 bits with every scale where the checkpoint has it: no channel counts as an outlier."""
    with patch.object(engine.int8, "OUTLIER", math.inf):
        return PackedEngine(checkpoint, "cpu", INT8)


@torch.inference_mode()
def coarse_head(checkpoint: Path) -> PackedEngine:
    """Return the engine in float32, with the weights of its two Dense layers in 8 bits, a scale for each row."""
    loaded = PackedEngine(checkpoint, "cpu", FLOAT32)
    hidden, wide = loaded.network.architecture.hidden, loaded.network.architecture.dense[0]
    for dense, columns in zip(loaded.network.dense, (hidden, wide), strict=True):
        assert isinstance(dense, Linear)
        weight = dense(torch.eye(columns)).T  # packed, a weight shows only in its products
        dense.packed, dense.weight = None, nn.Parameter(rounded(weight, "int8 rows"), requires_grad=False)
    return loaded


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--pairs", type=Path, required=True, help="a CSV with two texts and a grade a row")
    args = parser.parse_args()
    exact = PackedEngine(args.checkpoint, "cpu", FLOAT32)
    texts, grades = read_pairs(args.pairs, exact.tokenizer)
    expected = exact.embed(texts)
    rows = [["float32", "", "", spearman(expected, grades)]]
    for name, load in (
        ("float32, the head in int8", coarse_head),
        ("int8, scales not moved", unmoved),
        ("int8", lambda checkpoint: PackedEngine(checkpoint, "cpu", INT8)),
    ):
        vectors = load(args.checkpoint).embed(texts)
        cosine, _ = errors(vectors, expected)
        rows.append([name, f"{np.median(cosine):.1e}", f"{cosine.max():.1e}", spearman(vectors, grades)])
    logger.info("%d texts\n%s", len(texts), table(["", "1-cos, median", "1-cos, worst", "Spearman x 100"], rows))


if __name__ == "__main__":
    main()
