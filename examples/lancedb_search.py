"""LanceDB: exact float32, float16, bits, 256 components; indexes of 8 bits and of bits, rescored; BM25 for words.

make serve &
make example NAME=lancedb_search
LANCEDB_URI=s3://bucket/folder make example NAME=lancedb_search  # yours, in tables trial_*
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

from examples.client import needs
from examples.hybrid import joined
from examples.temporary import size_of, temporary
from examples.trial import Question, Search, Stored, Trial, Vectors, run

with needs("lancedb", "pyarrow", "numpy"):
    import lancedb.index
    import numpy as np
    import pyarrow as pa

URI = os.environ.get("LANCEDB_URI")
# For each table what the server is asked for, and an index, whose candidates are scored again by the column.
FORMATS: dict[str, tuple[str, int, object]] = {
    "float32": ("float32", 768, None),
    "float16": ("float16", 768, None),
    "bits": ("ubinary", 768, None),
    "256_components": ("float32", 256, None),
    "float16_hnsw_of_8_bits": ("float16", 768, lancedb.index.HnswSq("dot", num_partitions=1)),
    "float16_ivf_of_bits": ("float16", 768, lancedb.index.IvfRq("dot", num_partitions=1)),
}


@contextmanager
def opened() -> Iterator[lancedb.DBConnection]:
    """Open LANCEDB_URI, or a temporary folder."""
    with nullcontext(URI) if URI else temporary() as place:
        yield lancedb.connect(str(place))


def fill(database: lancedb.DBConnection, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a table for each format."""
    stored = {}
    for name, (precision, dim, index) in FORMATS.items():
        vectors = documents(precision, dim)
        column = pa.FixedSizeListArray.from_arrays(vectors.ravel(), vectors.shape[1])
        rows = pa.table({"id": range(len(vectors)), "v": column})
        table = database.create_table(f"trial_{name}", rows, mode="overwrite")
        if index:
            table.create_index("v", config=index)
        stored[name] = Stored(partial(_nearest, table), size_of(Path(database.uri) / f"{table.name}.lance"))
    return stored


def _nearest(table: lancedb.Table, question: Question, k: int = 10) -> dict[int, float]:
    """Return the nearest documents and their scores, of bits by the Hamming distance."""
    column = table.schema.field("v").type
    is_bits = column.value_type == pa.uint8()
    vector = np.packbits(question.vector > 0) if is_bits else question.vector[: column.list_size]
    query = table.search(vector, vector_column_name="v").distance_type("hamming" if is_bits else "dot").ef(200)
    return {row["id"]: -row["_distance"] for row in query.refine_factor(10).limit(k).to_list()}


def with_words(database: lancedb.DBConnection, trial: Trial) -> Search:
    """Return a search by exact vectors and by words, a hundred documents of each."""
    rows = [{"id": i, "text": text} for i, text in enumerate(trial.texts())]
    texts, vectors = database.create_table("trial_texts", rows, mode="overwrite"), database.open_table("trial_float32")
    texts.create_index("text", config=lancedb.index.FTS())

    def search(question: Question) -> list[int]:
        found = texts.search(question.words, query_type="fts").limit(100).to_list()
        return joined(_nearest(vectors, question, 100), {row["id"]: row["_score"] for row in found})

    return search


if __name__ == "__main__":
    run(opened, fill, with_words)
