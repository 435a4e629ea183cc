"""FAISS, a library without a server: exact float32 and float16, 8 bits, a graph (HNSW), and bits rescored.

    make serve &
    make example NAME=faiss_search

FAISS has no full text: bm25s ranks by words.
"""

from contextlib import AbstractContextManager, nullcontext

from examples.client import needs
from examples.hybrid import joined, ranked_by_words
from examples.trial import Question, Search, Stored, Trial, Vectors, run

with needs("faiss-cpu", "numpy"):
    import faiss
    import numpy as np

# As FAISS's index factory names them.
FORMATS = {"float32": "Flat", "float16": "SQfp16", "8 bits": "SQ8", "float32 HNSW": "HNSW32,Flat"}


def opened() -> AbstractContextManager[None]:
    """Return a context of nothing: indexes are objects of this process."""
    return nullcontext()


def fill(_: None, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in an index of each format."""
    vectors, stored = documents(), dict[str, Stored]()
    for name, factory in FORMATS.items():
        index = faiss.index_factory(768, factory, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add(vectors)
        stored[name] = Stored(_nearest(index), len(faiss.serialize_index(index)))
    bits = faiss.IndexBinaryFlat(768)
    bits.add(documents("ubinary"))

    def in_bits(question: Question, k: int = 10) -> np.ndarray:
        return bits.search(np.packbits(question.vector > 0)[None], k)[1][0]

    def rescored(question: Question) -> np.ndarray:
        nearest = in_bits(question, 100)
        return nearest[np.argsort(-(vectors[nearest] @ question.vector))[:10]]

    size = len(faiss.serialize_index_binary(bits))
    return stored | {"bits": Stored(in_bits, size), "bits rescored": Stored(rescored, size + vectors.nbytes)}


def _nearest(index: faiss.Index) -> Search:
    return lambda question: index.search(question.vector[None], 10)[1][0]


def with_words(_: None, trial: Trial) -> Search:
    """Return a search by exact vectors and by words, a hundred documents of each."""
    index = faiss.IndexFlatIP(768)
    index.add(trial.vectors())
    by_words = ranked_by_words(trial)

    def search(question: Question) -> list[int]:
        [scores], [rows] = index.search(question.vector[None], 100)
        return joined(dict(zip(rows, scores, strict=True)), by_words(question.words))

    return search


if __name__ == "__main__":
    run(opened, fill, with_words)
