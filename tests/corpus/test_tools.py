"""Other tools read an output directly, as the documentation shows."""

from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus.rows import Columns
from engine.packed import PackedEngine
from tests.support import corpora

TEXTS = ["Parcels are delivered within three days.", "Unused goods can be returned.", "The login page has a link."]


@pytest.fixture(scope="module")
def vectors(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools")
    source = corpora.write(folder / "a.jsonl", [{"text": text, "id": 10 + i} for i, text in enumerate(TEXTS)])
    columns = Columns(id="id", carried=("text",))
    corpora.embed(PackedEngine(small, "cpu"), source, folder / "vectors.parquet", columns)
    return folder / "vectors.parquet"


def test_duckdb(vectors: Path) -> None:
    array = np.stack(pq.read_table(vectors)["embedding"].to_numpy())
    found = duckdb.execute(
        """
        SELECT id, array_cosine_similarity(embedding, $query::FLOAT[768]) AS score
        FROM (SELECT id, embedding::FLOAT[768] AS embedding FROM read_parquet($file)) ORDER BY score DESC
        """,
        {"query": array[1].tolist(), "file": str(vectors)},
    ).fetchall()
    assert found[0][0] == 11
    scores = {10 + i: score for i, score in enumerate(array @ array[1])}
    assert all(abs(score - scores[i]) < 1e-6 for i, score in found)


def test_qdrant(vectors: Path) -> None:
    from qdrant_client import QdrantClient, models  # takes a second

    table = pq.read_table(vectors)
    array = np.stack(table["embedding"].to_numpy())
    client = QdrantClient(":memory:")
    size = models.VectorParams(size=array.shape[1], distance=models.Distance.COSINE)
    client.create_collection("texts", vectors_config=size)
    payload = table.select(["text"]).to_pylist()
    client.upload_collection("texts", vectors=array, ids=table["id"].to_pylist(), payload=payload)
    best = client.query_points("texts", query=array[2], limit=1, with_payload=True).points[0]
    assert (best.id, best.payload) == (12, {"text": TEXTS[2]})
    assert abs(best.score - 1) < 1e-5
