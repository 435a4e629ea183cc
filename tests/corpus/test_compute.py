"""Texts of blocks to vectors: numbers, chunks, long texts, and texts that the tokenizer refuses."""

from pathlib import Path

import numpy as np
import pytest

from corpus.blocks import BlockLimits
from corpus.rows import CorpusError
from engine.packed import PackedEngine
from tests.support.corpora import TEXTS, embed, embed_alone, output_rows, output_vectors, write
from texts.chunking import Chunking
from texts.options import Options


def test_a_text_file_is_numbered_by_its_lines(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [{"text": text} for text in TEXTS])
    embed(engine, source, tmp_path / "v.parquet", options=Options(task="clustering"))
    some = [0, 3, 24, 42]
    alone = embed_alone(engine, [TEXTS[i] for i in some], [None] * len(some), "clustering")
    np.testing.assert_allclose(output_vectors(tmp_path / "v.parquet")[some], alone, atol=1e-6)
    assert [row["id"] for row in output_rows(tmp_path / "v.parquet")] == list(range(1, len(TEXTS) + 1))


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
def test_chunks_are_rows_with_ranges(engine: PackedEngine, tmp_path: Path, form: str) -> None:
    long = "The committee met again on Tuesday and could not agree. " * 20
    rows = [{"text": "short"}, {"text": long}, {"text": "short"}, {"text": "Wien " + long}]
    output = tmp_path / f"v.{form}"
    chunked = Options(chunking=Chunking(64, 16))
    embed(engine, write(tmp_path / "a.jsonl", rows), output, options=chunked, limits=BlockLimits(rows=2))
    actual = output_rows(output)
    cut = [rows[row["id"] - 1]["text"][row["start"] : row["end"]] for row in actual]
    assert [row["id"] for row in actual] == sorted(row["id"] for row in actual)
    assert len(cut) > 10 and cut.count("short") == 2
    alone = embed_alone(engine, cut, [None] * len(cut), "retrieval_document")
    np.testing.assert_allclose(output_vectors(output), alone, atol=1e-6)


def test_late_chunks_are_stored_with_their_ranges(engine: PackedEngine, tmp_path: Path) -> None:
    long = "The committee met again on Tuesday and could not agree. " * 20
    source = write(tmp_path / "a.jsonl", [{"text": "short"}, {"text": long}])
    late = Options(chunking=Chunking(64, late=True))
    embed(engine, source, tmp_path / "v.parquet", options=late)
    rows, vectors = output_rows(tmp_path / "v.parquet"), output_vectors(tmp_path / "v.parquet")
    assert "".join(long[row["start"] : row["end"]] for row in rows[1:]) == long
    alone = embed_alone(engine, ["short", *(long[r["start"] : r["end"]] for r in rows[1:])], [None] * len(rows), "none")
    cosines = (vectors * embed_alone(engine, ["short"], [None], "retrieval_document")).sum(axis=1)
    assert abs(cosines[0] - 1) < 1e-6, "a text of one chunk has its ordinary vector"
    assert ((vectors[1:] * alone[1:]).sum(axis=1) < 0.9999).all()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_run_stops_at_a_text_that_the_tokenizer_refuses(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [{"text": "one"}, {"text": "w " * 3000}])
    with pytest.raises(CorpusError, match=r"a\.txt, line 2: the text has 3,0\d\d tokens with its prompt and the limit"):
        embed(engine, source, tmp_path / "v.npy", options=Options(truncate="none"))


def test_ten_megabytes_in_one_text(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "word " * 2_000_000}, {"text": "short"}])
    embed(engine, source, tmp_path / "v.parquet")
    first, _ = output_rows(tmp_path / "v.parquet")
    assert (first["token_count"], first["truncated"]) == (2048, True)
