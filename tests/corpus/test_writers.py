"""The output's formats: every row with its vector, and no partial files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import encoding
from corpus.blocks import BlockLimits
from corpus.destination import Destination
from corpus.output_files import check_output
from corpus.rows import Columns, CorpusError
from corpus.shards import shards_path
from engine.packed import PackedEngine
from tasks import prompt_for
from tests.support.corpora import COLUMNS, ROWS, embed, embed_alone, output_rows, output_vectors, write
from tests.support.files import file_size_limit
from texts.options import Options


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
@pytest.mark.parametrize("source", ["a.jsonl.gz", "a.csv", "a.parquet"])
def test_row_i_is_text_i(engine: PackedEngine, expected: np.ndarray, tmp_path: Path, source: str, form: str) -> None:
    output = tmp_path / f"vectors.{form}"
    flat = [{**row, "note": json.dumps(row["note"]), "head": row["head"] or ""} for row in ROWS]
    last = embed(engine, write(tmp_path / source, flat if source == "a.csv" else ROWS), output, COLUMNS)
    np.testing.assert_allclose(output_vectors(output), expected, atol=1e-6)
    rows = output_rows(output)
    assert [row["id"] for row in rows] == [row["name"] for row in ROWS]
    assert [row["truncated"] for row in rows] == [False] * len(ROWS)
    counts = [
        len(engine.tokenizer.encode([prompt_for("retrieval_document", row["head"])], [row["text"]])[0].ids)
        for row in ROWS
    ]
    assert [row["token_count"] for row in rows] == counts
    assert (last.rows, last.expected, last.skipped) == (len(ROWS), len(ROWS), 0)
    assert not shards_path(output).exists() and not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("precision", list(encoding.WIRE_DTYPES))
@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
def test_precisions(engine: PackedEngine, expected: np.ndarray, tmp_path: Path, precision: str, form: str) -> None:
    output = tmp_path / f"v.{form}"
    embed(engine, write(tmp_path / "a.jsonl", ROWS), output, COLUMNS, Options(embedding_dim=256, precision=precision))
    wanted = encoding.convert(encoding.cut(expected, 256, True), precision)
    actual = output_vectors(output)
    assert actual.shape == wanted.shape
    if form != "jsonl":
        assert actual.dtype == wanted.dtype
    if precision in ("binary", "ubinary"):  # a component that is almost zero may have either sign
        bits = np.unpackbits((actual.astype(np.int16) & 255).astype(np.uint8) ^ wanted.view(np.uint8))
        assert bits.mean() < 1e-3
    else:
        step = {"float32": 1e-6, "float16": 1e-3}.get(precision, 1.0)
        np.testing.assert_allclose(actual.astype(np.float64), wanted.astype(np.float64), atol=step)


def test_parquet_says_what_its_vectors_are(engine: PackedEngine, tmp_path: Path) -> None:
    options = Options(task="clustering", embedding_dim=128, precision="int8")
    columns = Columns(carried=("note", "name"))
    embed(engine, write(tmp_path / "a.jsonl", ROWS), tmp_path / "v.parquet", columns, options)
    schema = pq.read_schema(tmp_path / "v.parquet")
    assert schema.field("embedding").type == pa.list_(pa.field("element", pa.int8(), nullable=False), 128)
    assert schema.metadata == {
        b"model": b"small",
        b"task": b"clustering",
        b"dimensions": b"128",
        b"precision": b"int8",
        b"normalized": b"true",
        b"truncate": b"end",
        b"prompts_in_texts": b"this task",
    }
    assert output_rows(tmp_path / "v.parquet")[2]["note"] == '{"i": 2}', "JSON that is no string stays as it is"
    assert output_rows(tmp_path / "v.parquet")[2]["name"] == "key-2"
    sizes = pq.ParquetFile(tmp_path / "v.parquet").metadata.row_group(0)
    taken = [sizes.column(i) for i in range(sizes.num_columns) if "embedding" in sizes.column(i).path_in_schema]
    assert taken[0].total_compressed_size < 1.2 * 128 * sizes.num_rows + 2000, "about a byte a component"


def test_carried_columns_keep_their_types(engine: PackedEngine, tmp_path: Path) -> None:
    embed(engine, write(tmp_path / "a.jsonl", ROWS), tmp_path / "v.jsonl", Columns(carried=("note", "head")))
    assert [(row["note"], row["head"]) for row in output_rows(tmp_path / "v.jsonl")] == [
        (r["note"], r["head"]) for r in ROWS
    ]
    embed(
        engine, write(tmp_path / "a.parquet", ROWS), tmp_path / "v.parquet", Columns(carried=("note", "text", "number"))
    )
    table, source = pq.read_table(tmp_path / "v.parquet"), pq.read_table(tmp_path / "a.parquet")
    for name in ("note", "text", "number"):
        assert table[name].to_pylist() == source[name].to_pylist() and table[name].type == source[name].type


BAD: list[dict[str, Any]] = [
    {"text": "one"},
    {"text": None},
    {"text": "three"},
    {"text": " "},
    {"text": "w " * 3000},
    {"text": "six"},
]


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
def test_skipped_rows_are_listed_and_the_rest_is_done(engine: PackedEngine, tmp_path: Path, form: str) -> None:
    output = tmp_path / f"v.{form}"
    rows: list[dict[str, Any]] = [
        *BAD,
        {"text": "w " * 3000},
        {"text": "eight"},
    ]  # the refused text once more, in another block
    strict = Options(truncate="none")
    last = embed(engine, write(tmp_path / "a.jsonl", rows), output, None, strict, BlockLimits(rows=3), skip=True)
    assert last.skipped == 4
    assert [row["id"] for row in output_rows(output)] == [1, 3, 6, 8]
    listed = [json.loads(line) for line in (tmp_path / "v.skipped.jsonl").read_text().splitlines()]
    assert [row["number"] for row in listed] == [2, 4, 5, 7]
    assert listed[0]["problem"] == "text: it is null; give a text, or leave it out"
    assert listed[3]["problem"].startswith(
        "the text has 3,010 tokens with its prompt and the limit is 2,048; shorten it"
    )
    alone = embed_alone(engine, ["one", "three", "six", "eight"], [None] * 4, "retrieval_document")
    np.testing.assert_allclose(output_vectors(output), alone, atol=1e-6)


def test_outputs_that_cannot_be(engine: PackedEngine, tmp_path: Path) -> None:
    (tmp_path / "there.npy").touch()
    for name, problem in (
        ("there.npy", "the file is there already; delete it, or name another"),
        ("nowhere/v.npy", "there is no folder .*nowhere; make it first"),
    ):
        with pytest.raises(CorpusError, match=problem):
            check_output(tmp_path / name)
    with pytest.raises(CorpusError, match=r"the output's format is 'doc'; name a \.parquet, \.arrow"):
        Destination.of("s3://bucket/v.doc")
    with pytest.raises(CorpusError, match=r"v\.npy: not written, as no row of the input has a vector"):
        embed(engine, write(tmp_path / "a.jsonl", [{"text": ""}]), tmp_path / "v.npy", skip=True)


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
def test_a_full_disk_leaves_no_output_and_keeps_what_is_done(engine: PackedEngine, tmp_path: Path, form: str) -> None:
    source, output = write(tmp_path / "a.jsonl", ROWS), tmp_path / f"v.{form}"
    said = rf"v\.{form}: cannot be written: File too large; what is done is kept in .*\.parts: make room"
    with file_size_limit(100_000), pytest.raises(CorpusError, match=said):  # a shard has half of that
        embed(engine, source, output)
    assert not output.exists()
    last = embed(engine, source, output)
    assert last.resumed == len(ROWS) and len(output_vectors(output)) == len(ROWS)
