"""Measure what 16-bit arithmetic costs: vectors in each number format against the packed engine's in float32.

python -m benchmarks.number_formats checkpoints/small
python -m benchmarks.number_formats checkpoints/small --pairs stsb-en-test.csv
python -m benchmarks.number_formats /tmp/random --lengths 8,32,128 --device cpu
"""

import argparse
import csv
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import table
from benchmarks.texts import random_token_ids
from engine.contract import Engine
from engine.model import BFLOAT16, FLOAT16, FLOAT32, NumberFormat
from engine.packed import PackedEngine
from engine.tokenizer import Tokenizer
from tasks import prompt_for

logger = logging.getLogger(__name__)

Ids = Sequence[Sequence[int]]


def _reference(checkpoint: Path, device: str | None) -> Engine:
    from engine.reference import ReferenceEngine  # takes seconds

    return ReferenceEngine(checkpoint, device, "bfloat16")


def _packed(numbers: NumberFormat, checkpoint: Path, device: str | None) -> Engine:
    return PackedEngine(checkpoint, device, numbers)


ENGINES: dict[str, Callable[[Path, str | None], Engine]] = {
    "bfloat16": partial(_packed, BFLOAT16),
    "bfloat16, the residual stream too": partial(_packed, NumberFormat(torch.bfloat16, torch.bfloat16)),
    "float16, rescaled": partial(_packed, FLOAT16),
    "float16, as it is": partial(_packed, NumberFormat(torch.float16, torch.float16)),
    "sentence-transformers, bfloat16": _reference,
}


def errors(vectors: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return 1 - cosine and the relative error of the norm of each row, in float64."""
    a, b = vectors.astype(np.float64), expected.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    return 1 - (a * b).sum(axis=1) / (norm_a * norm_b), np.abs(norm_a / norm_b - 1)


def spearman(vectors: np.ndarray, grades: Sequence[float]) -> float:
    """Return Spearman's correlation, times 100, of the grades with the cosine of each row and its neighbour."""
    from scipy.stats import spearmanr

    unit = vectors.astype(np.float64) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return float(100 * spearmanr((unit[::2] * unit[1::2]).sum(axis=1), grades).statistic)


def read_pairs(path: Path, tokenizer: Tokenizer) -> tuple[Ids, list[float]]:
    """Return the token ids of both texts of each row, under the prompt for similarity, and the rows' grades."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    texts = [text for row in rows for text in row[:2]]
    encoded = tokenizer.encode([prompt_for("semantic_similarity")] * len(texts), texts)
    return [text.ids for text in encoded], [float(row[2]) for row in rows]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--lengths", default="8,32,128,300", help="tokens of the texts")
    parser.add_argument("--copies", type=int, default=2, help="texts of each length")
    parser.add_argument("--pairs", type=Path, help="embed the texts of this CSV: two texts and a grade in each row")
    parser.add_argument("--device", default=None, help="cpu or cuda; default: the GPU if there is one")
    args = parser.parse_args()
    exact = PackedEngine(args.checkpoint, args.device, FLOAT32)
    lengths = [int(length) for length in args.lengths.split(",")]
    texts: Ids = random_token_ids(exact.network.architecture.vocab_size, lengths, args.copies)
    grades: list[float] = []
    if args.pairs:
        texts, grades = read_pairs(args.pairs, exact.tokenizer)
    expected = exact.embed(texts)
    rows = [["float32", "", "", "", *([f"{spearman(expected, grades):.3f}"] if grades else [])]]
    for name, load in ENGINES.items():
        vectors = load(args.checkpoint, args.device).embed(texts)
        cosine, norm = errors(vectors, expected)
        figures = [f"{error:.2e}" for error in (np.median(cosine), cosine.max(), norm.max())]
        rows.append([name, *figures, *([f"{spearman(vectors, grades):.3f}"] if grades else [])])
    head = ["", "1-cos, median", "1-cos, worst", "norm, worst", *(["Spearman x 100"] if grades else [])]
    logger.info("%d texts\n%s", len(texts), table(head, rows))


if __name__ == "__main__":
    main()
