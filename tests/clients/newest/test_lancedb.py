"""The class for LanceDB in docs/clients.md."""

from pathlib import Path

import lancedb
import pytest
from lancedb.pydantic import LanceModel, Vector

from tests.clients.examples import class_of
from tests.clients.support import DOCUMENTS, QUERY, Predict, check_same


def test_a_table_embeds_documents_and_queries_also_when_opened_again(
    apis: str, predict: Predict, tmp_path: Path
) -> None:
    embedding = class_of("LanceDB").create(url=f"{apis}/v1", max_retries=0)

    class Page(LanceModel):
        text: str = embedding.SourceField()
        vector: Vector(embedding.ndims()) = embedding.VectorField()  # type: ignore[valid-type]

    lancedb.connect(tmp_path).create_table("pages", schema=Page).add([{"text": text} for text in DOCUMENTS])
    table = lancedb.connect(tmp_path).open_table("pages")
    check_same(table.to_arrow()["vector"].to_pylist(), predict(DOCUMENTS))
    cosines = predict(DOCUMENTS) @ predict([QUERY], "retrieval_query")[0]
    for found in table.search(QUERY).distance_type("cosine").to_list():
        assert found["_distance"] == pytest.approx(1 - cosines[DOCUMENTS.index(found["text"])], abs=1e-6)
