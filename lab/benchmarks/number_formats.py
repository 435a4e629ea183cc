"""Measure what number formats of 16 and 8 bits cost: vectors in each against the packed engine's in float32.

python -m lab.benchmarks.number_formats checkpoints/small
python -m lab.benchmarks.number_formats checkpoints/small --pairs stsb-en-test.csv
python -m lab.benchmarks.number_formats /tmp/random --lengths 8,32,128 --device cpu
"""

import argparse
import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from engine.contract import DeviceError
from engine.model import BFLOAT16, FLOAT16, FLOAT32, INT8, NumberFormat
from engine.packed import PackedEngine
from engine.tokenizer import Tokenizer
from lab.benchmarks.embedders import errors
from lab.benchmarks.texts import random_token_ids
from lab.report import table
from tasks import prompt_for

logger = logging.getLogger(__name__)

FORMATS: dict[str, NumberFormat | None] = {
    "bfloat16": BFLOAT16,
    "bfloat16, the residual stream too": NumberFormat(torch.bfloat16, torch.bfloat16),
    "int8": INT8,
    "float16, rescaled": FLOAT16,
    "float16, as it is": NumberFormat(torch.float16, torch.float16),
    "sentence-transformers, bfloat16": None,
}


def spearman(vectors: np.ndarray, grades: Sequence[float]) -> str:
    """Return Spearman's correlation, times 100, of the grades with the cosine of each row and its neighbour."""
    from scipy.stats import spearmanr

    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return f"{100 * spearmanr((unit[::2] * unit[1::2]).sum(axis=1), grades).statistic:.3f}"


def read_pairs(path: Path, tokenizer: Tokenizer) -> tuple[list[list[int]], list[float]]:
    """Return the token ids of both texts of each row, under the prompt for similarity, and the rows' grades."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    texts = [text for row in rows for text in row[:2]]
    encoded = tokenizer.encode([prompt_for("semantic_similarity")] * len(texts), texts)
    return [list(text.ids) for text in encoded], [float(row[2]) for row in rows]


def embed(
    checkpoint: Path, device: str | None, numbers: NumberFormat | None, texts: Sequence[Sequence[int]]
) -> np.ndarray:
    """Return the texts' vectors in a format, by sentence-transformers in bfloat16 without one; float32 [n, 768].

    Raises DeviceError where the device does not compute in the format.
    """
    if numbers is None:
        from engine.reference import ReferenceEngine  # takes seconds

        return ReferenceEngine(checkpoint, device, "bfloat16").embed(texts)
    return PackedEngine(checkpoint, device, numbers).embed(texts)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--lengths", default="8,32,128,300", help="tokens of the texts")
    parser.add_argument("--copies", type=int, default=2, help="texts of each length")
    parser.add_argument("--pairs", type=Path, help="embed the texts of this CSV instead: two texts and a grade a row")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: the GPU if there is one")
    args = parser.parse_args()
    exact, grades = PackedEngine(args.checkpoint, args.device, FLOAT32), list[float]()
    lengths = [int(length) for length in args.lengths.split(",")]
    texts = random_token_ids(exact.network.architecture.vocab_size, lengths, args.copies)
    if args.pairs:
        texts, grades = read_pairs(args.pairs, exact.tokenizer)
    expected = exact.embed(texts)
    rows = [["float32", *[""] * 4, *([spearman(expected, grades)] if grades else [])]]
    for name, numbers in FORMATS.items():
        try:
            vectors = embed(args.checkpoint, args.device, numbers, texts)
        except DeviceError as error:
            logger.info("%s: %s", name, error)
            continue
        cosine, norm = errors(vectors, expected)
        figures = [f"{error:.2e}" for error in (*np.quantile(cosine, (0.5, 0.99, 1.0)), norm.max())]
        rows.append([name, *figures, *([spearman(vectors, grades)] if grades else [])])
    head = ["", *(f"1-cos, {which}" for which in ("median", "p99", "worst")), "norm, worst"]
    head += ["Spearman x 100"] if grades else []
    logger.info("%d texts\n%s", len(texts), table(head, rows))


if __name__ == "__main__":
    main()
