"""Keep documents as bits, a 32nd of their size, and ask with numbers: less is lost than by Hamming distance.

    make serve &
    make example NAME=bits

The score of a document is the sum of the query's numbers, negated where the document's bit is 0. With 256 of 768 bits
in memory, the best 40 are ranked again by full vectors, which may stay on disk.
"""

from examples.client import embed, needs
from examples.trial import dictionary, exact

with needs("numpy"):
    import numpy as np


def signs(bits: np.ndarray) -> np.ndarray:
    """Return +1 and -1, float32 [n, d], for `ubinary` vectors [n, d / 8]."""
    return np.unpackbits(bits, axis=1).astype(np.float32) * 2 - 1


def rescored(queries: np.ndarray, candidates: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the ten candidates, [queries, n], that are nearest by full vectors."""
    found = [rows[np.argsort(-(vectors[rows] @ query))[:10]] for query, rows in zip(queries, candidates, strict=True)]
    return np.stack(found)


def main() -> None:
    trial = dictionary(300)
    vectors, queries = trial.vectors(), embed(trial.asked, "retrieval_query")
    bits, few = trial.vectors("ubinary"), trial.vectors("ubinary", 256)
    few_queries = queries[:, :256]
    searches = {
        "float32": (3072, exact(vectors, queries)),
        "768 bits, bits": (96, exact(signs(bits), np.sign(queries))),
        "768 bits, numbers": (96, exact(signs(bits), queries)),
        "256 bits, bits": (32, exact(signs(few), np.sign(few_queries))),
        "256 bits, numbers": (32, exact(signs(few), few_queries)),
        "256 bits, numbers, rescored": (32, rescored(queries, exact(signs(few), few_queries, 40), vectors)),
    }
    for name, (size, found) in searches.items():
        right = np.mean([answer in hits for answer, hits in zip(trial.answers, found, strict=True)])
        print(f"{name:28} {size:5} bytes in memory  answer among ten {right:.1%}")


if __name__ == "__main__":
    main()
