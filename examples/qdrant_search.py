"""Qdrant's engine in this process: float32, float16, 8 bits and bits, both rescored; BM25 and Qdrant's own joining.

    make serve &
    make example NAME=qdrant_search

A Qdrant server has the same names in qdrant-client: models.VectorParams, ScalarQuantization, Prefetch, Fusion.DBSF.
"""

from collections.abc import Iterable
from functools import partial
from itertools import islice
from pathlib import Path

from examples.client import needs
from examples.temporary import size_of, temporary
from examples.trial import Question, Search, Stored, Trial, Vectors, run

with needs("qdrant-edge-py"):
    import qdrant_edge as qdrant

FLOAT16 = {"datatype": qdrant.VectorStorageDatatype.Float16}
# Vectors have length 1, so Dot is the cosine. Qdrant keeps the vectors beside what it quantises, and rescores by them.
FORMATS: dict[str, dict[str, object]] = {
    "float32": {},
    "float16": FLOAT16,
    "8 bits rescored": {"quantization_config": qdrant.ScalarQuantizationConfig(qdrant.ScalarType.Int8)},
    "bits rescored": FLOAT16 | {"quantization_config": qdrant.BinaryQuantizationConfig()},
}
INDEX_ALL = qdrant.EdgeOptimizersConfig(indexing_threshold=1)  # in kB
RESCORE = qdrant.SearchParams(hnsw_ef=100, quantization=qdrant.QuantizationSearchParams(rescore=True, oversampling=10))


opened = temporary  # a shard is a folder


def fill(folder: Path, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a shard for each format, with a graph (HNSW)."""
    stored = {}
    for name, options in FORMATS.items():
        vectors = (row.tolist() for row in documents("float16" if "datatype" in options else "float32"))
        shard = _filled(folder / name, vectors, qdrant.EdgeVectorParams(768, qdrant.Distance.Dot, **options))
        stored[name] = Stored(partial(_nearest, shard), size_of(folder / name))
    return stored


def _filled(folder: Path, vectors: Iterable[object], *params: object) -> qdrant.EdgeShard:
    folder.mkdir()
    shard = qdrant.EdgeShard.create(str(folder), qdrant.EdgeConfig(*params, optimizers=INDEX_ALL, wal_enabled=False))
    points = (qdrant.Point(i, vector) for i, vector in enumerate(vectors))
    while batch := list(islice(points, 1000)):
        shard.update(qdrant.UpdateOperation.upsert_points(batch))
    shard.optimize()  # builds the graph, and quantises
    shard.flush()
    return shard


def _nearest(shard: qdrant.EdgeShard, question: Question) -> list[int]:
    query = qdrant.Query.Nearest(question.vector.tolist())
    return [point.id for point in shard.query(qdrant.QueryRequest(10, query=query, params=RESCORE))]


def with_words(folder: Path, trial: Trial) -> Search:
    """Return a search by vectors and BM25, joined by Qdrant: both scores in standard deviations, as examples.hybrid."""
    bm25, dense = qdrant.Bm25(), {"dense": qdrant.EdgeVectorParams(768, qdrant.Distance.Dot)}
    pairs = zip(trial.vectors().tolist(), trial.texts(), strict=True)
    vectors = ({"dense": vector, "words": bm25.embed_document(text)} for vector, text in pairs)
    words = {"words": qdrant.EdgeSparseVectorParams(modifier=qdrant.Modifier.Idf)}
    shard = _filled(folder / "words", vectors, dense, words)

    def search(question: Question) -> list[int]:
        near = qdrant.Query.Nearest(question.vector.tolist(), "dense")
        worded = qdrant.Query.Nearest(bm25.embed_query(question.words), "words")
        prefetches = [qdrant.Prefetch(100, query) for query in (near, worded)]
        return [p.id for p in shard.query(qdrant.QueryRequest(10, query=qdrant.Fusion.Dbsf(), prefetches=prefetches))]

    return search


if __name__ == "__main__":
    run(opened, fill, with_words)
