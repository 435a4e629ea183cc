"""Corpora from file to file: the rows' order, the formats, what is kept and what is said when something is wrong."""

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import encoding
from corpus.blocks import Limits
from corpus.rows import Columns, CorpusError
from corpus.run import check_output, parts_of
from corpus.shards import Parts
from engine.packed import PackedEngine
from tasks import prompt_for
from tests.support.corpora import embed, texts, write
from texts.chunking import Chunking
from texts.options import Options

# Lengths out of order, texts twice in one window and in several, more than two windows of 16.
TEXTS = [*texts(20), *texts(10, first=5), *texts(12, first=30), "word and " * 300]
ROWS: list[dict[str, Any]] = [
    {"text": text, "number": i, "name": f"key-{i}", "head": f"Title {i % 3}" if i % 3 else None, "note": {"i": i}}
    for i, text in enumerate(TEXTS)
]
COLUMNS = Columns(title="head", id="name")


@pytest.fixture(scope="module")
def engine(small: Path) -> PackedEngine:
    return PackedEngine(small, "cpu")


def one_by_one(engine: PackedEngine, some: list[str], titles: list[str | None], task: str) -> np.ndarray:
    """Return unit vectors, each computed alone."""
    prompts = [prompt_for(task, title) for title in titles]
    ids = [engine.tokenizer.encode([prompt], [text])[0].ids for prompt, text in zip(prompts, some, strict=True)]
    return encoding.cut(np.concatenate([engine.embed([one]) for one in ids]), 768, True)


@pytest.fixture(scope="module")
def expected(engine: PackedEngine) -> np.ndarray:
    return one_by_one(engine, TEXTS, [row["head"] for row in ROWS], "retrieval_document")


def vectors_of(path: Path) -> np.ndarray:
    """Return the vectors of an output of any format."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path, mmap_mode="r"))
    if path.suffix == ".jsonl":
        return np.array([json.loads(line)["embedding"] for line in path.read_text().splitlines()])
    column = pq.read_table(path)["embedding"].combine_chunks()
    return np.asarray(column.values.to_numpy()).reshape(len(column), -1)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return everything else of an output."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list(pq.read_table(path.with_suffix(".rows.parquet") if path.suffix == ".npy" else path).to_pylist())


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
@pytest.mark.parametrize("source", ["a.jsonl.gz", "a.csv", "a.parquet"])
def test_row_i_is_text_i(engine: PackedEngine, expected: np.ndarray, tmp_path: Path, source: str, form: str) -> None:
    output = tmp_path / f"vectors.{form}"
    flat = [{**row, "note": json.dumps(row["note"]), "head": row["head"] or ""} for row in ROWS]
    last = embed(engine, write(tmp_path / source, flat if source == "a.csv" else ROWS), output, COLUMNS)
    np.testing.assert_allclose(vectors_of(output), expected, atol=1e-6)
    rows = rows_of(output)
    assert [row["id"] for row in rows] == [row["name"] for row in ROWS]
    assert [row["truncated"] for row in rows] == [False] * len(ROWS)
    counts = [
        len(engine.tokenizer.encode([prompt_for("retrieval_document", row["head"])], [row["text"]])[0].ids)
        for row in ROWS
    ]
    assert [row["token_count"] for row in rows] == counts
    assert (last.finished, last.rows, last.skipped) == (True, len(ROWS), 0)
    assert not parts_of(output).exists() and not list(tmp_path.glob("*.partial*"))


def test_a_text_file_is_numbered_by_its_lines(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [{"text": text} for text in TEXTS])
    embed(engine, source, tmp_path / "v.parquet", settings=Options(task="clustering"))
    some = [0, 3, 24, 42]
    alone = one_by_one(engine, [TEXTS[i] for i in some], [None] * len(some), "clustering")
    np.testing.assert_allclose(vectors_of(tmp_path / "v.parquet")[some], alone, atol=1e-6)
    assert [row["id"] for row in rows_of(tmp_path / "v.parquet")] == list(range(1, len(TEXTS) + 1))


@pytest.mark.parametrize("precision", list(encoding.WIRE_DTYPES))
@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
def test_precisions(engine: PackedEngine, expected: np.ndarray, tmp_path: Path, precision: str, form: str) -> None:
    output = tmp_path / f"v.{form}"
    embed(engine, write(tmp_path / "a.jsonl", ROWS), output, COLUMNS, Options(embedding_dim=256, precision=precision))
    wanted = encoding.convert(encoding.cut(expected, 256, True), precision)
    found = vectors_of(output)
    assert found.shape == wanted.shape
    if form != "jsonl":
        assert found.dtype == wanted.dtype
    if precision in ("binary", "ubinary"):  # a component that is almost zero may have either sign
        bits = np.unpackbits((found.astype(np.int16) & 255).astype(np.uint8) ^ wanted.view(np.uint8))
        assert bits.mean() < 1e-3
    else:
        step = {"float32": 1e-6, "float16": 1e-3}.get(precision, 1.0)
        np.testing.assert_allclose(found.astype(np.float64), wanted.astype(np.float64), atol=step)


def test_parquet_says_what_its_vectors_are(engine: PackedEngine, tmp_path: Path) -> None:
    settings = Options(task="clustering", embedding_dim=128, precision="int8")
    columns = Columns(carried=("note", "name"))
    embed(engine, write(tmp_path / "a.jsonl", ROWS), tmp_path / "v.parquet", columns, settings)
    schema = pq.read_schema(tmp_path / "v.parquet")
    assert schema.field("embedding").type == pa.list_(pa.field("element", pa.int8(), nullable=False), 128)
    assert schema.metadata == {
        b"model": b"small",
        b"task": b"clustering",
        b"dimensions": b"128",
        b"precision": b"int8",
        b"normalized": b"true",
        b"truncate": b"end",
    }
    assert rows_of(tmp_path / "v.parquet")[2]["note"] == '{"i":2}', "JSON that is no string stays JSON"
    assert rows_of(tmp_path / "v.parquet")[2]["name"] == "key-2"
    sizes = pq.ParquetFile(tmp_path / "v.parquet").metadata.row_group(0)
    taken = [sizes.column(i) for i in range(sizes.num_columns) if "embedding" in sizes.column(i).path_in_schema]
    assert taken[0].total_compressed_size < 1.2 * 128 * sizes.num_rows + 2000, "about a byte a component"


def test_carried_columns_keep_their_types(engine: PackedEngine, tmp_path: Path) -> None:
    embed(engine, write(tmp_path / "a.jsonl", ROWS), tmp_path / "v.jsonl", Columns(carried=("note", "head")))
    assert [(row["note"], row["head"]) for row in rows_of(tmp_path / "v.jsonl")] == [
        (r["note"], r["head"]) for r in ROWS
    ]
    embed(
        engine, write(tmp_path / "a.parquet", ROWS), tmp_path / "v.parquet", Columns(carried=("note", "text", "number"))
    )
    table, source = pq.read_table(tmp_path / "v.parquet"), pq.read_table(tmp_path / "a.parquet")
    for name in ("note", "text", "number"):
        assert table[name].to_pylist() == source[name].to_pylist() and table[name].type == source[name].type


def test_duplicates_are_computed_once(engine: PackedEngine, expected: np.ndarray, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in [*texts(40), *texts(40)]]
    remembered = embed(engine, write(tmp_path / "a.jsonl", rows), tmp_path / "a.npy")
    assert (remembered.rows, remembered.computed) == (80, 40)
    forgetful = embed(engine, tmp_path / "a.jsonl", tmp_path / "b.npy", limits=Limits(rows=16, remembered=1))
    assert 70 < forgetful.computed <= 80
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), atol=1e-6)
    titled: list[dict[str, Any]] = [
        {"text": "same", "head": "One"},
        {"text": "same", "head": "Two"},
        {"text": "same", "head": None},
    ]
    other = embed(engine, write(tmp_path / "c.jsonl", titled), tmp_path / "c.npy", Columns(title="head"))
    assert other.computed == 3, "another title is another text"


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
def test_chunks_are_rows_with_ranges(engine: PackedEngine, tmp_path: Path, form: str) -> None:
    long = "The committee met again on Tuesday and could not agree. " * 20
    rows = [{"text": "short"}, {"text": long}, {"text": "short"}, {"text": "Wien " + long}]
    output = tmp_path / f"v.{form}"
    chunked = Options(chunking=Chunking(64, 16))
    embed(engine, write(tmp_path / "a.jsonl", rows), output, settings=chunked, limits=Limits(rows=2))
    found = rows_of(output)
    cut = [rows[row["id"] - 1]["text"][row["start"] : row["end"]] for row in found]
    assert [row["id"] for row in found] == sorted(row["id"] for row in found)
    assert len(cut) > 10 and cut.count("short") == 2
    alone = one_by_one(engine, cut, [None] * len(cut), "retrieval_document")
    np.testing.assert_allclose(vectors_of(output), alone, atol=1e-6)


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
    ]  # the refused text once more, in another window
    strict = Options(truncate="none")
    last = embed(engine, write(tmp_path / "a.jsonl", rows), output, None, strict, Limits(rows=3), skip=True)
    assert last.skipped == 4
    assert [row["id"] for row in rows_of(output)] == [1, 3, 6, 8]
    listed = [json.loads(line) for line in (tmp_path / "v.skipped.jsonl").read_text().splitlines()]
    assert [one["number"] for one in listed] == [2, 4, 5, 7]
    assert listed[0]["problem"] == "text: it is null; give a text, or leave it out"
    assert listed[3]["problem"].startswith(
        "the text has 3,010 tokens with its prompt and the limit is 2,048; shorten it"
    )
    alone = one_by_one(engine, ["one", "three", "six", "eight"], [None] * 4, "retrieval_document")
    np.testing.assert_allclose(vectors_of(output), alone, atol=1e-6)


def test_a_run_stops_at_a_bad_row_and_goes_on_when_it_is_mended(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(60)]
    rows[40] = {"text": None}
    source, output = write(tmp_path / "a.jsonl", rows), tmp_path / "v.parquet"
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 41: text: it is null; .*What was done is kept: mend it and"):
        embed(engine, source, output)
    assert not output.exists() and len(list(parts_of(output).glob("0000000?"))) == 2
    rows[40] = {"text": "mended"}
    last = embed(engine, write(source, rows), output)
    assert (last.rows, last.resumed, last.computed) == (60, 32, 28)
    embed(engine, source, tmp_path / "whole.parquet")
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_stopped_run_can_go_on_skipping(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(40)]
    source = write(tmp_path / "a.jsonl", [*rows[:20], {"text": None}, *rows[20:]])
    with pytest.raises(CorpusError, match=r"line 21: .*or skip such rows \(on-error skip\)"):
        embed(engine, source, tmp_path / "v.npy")
    last = embed(engine, source, tmp_path / "v.npy", skip=True)
    assert (last.resumed, last.skipped, len(np.load(tmp_path / "v.npy"))) == (16, 1, 40)


def test_a_run_stops_at_a_text_that_the_tokenizer_refuses(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [{"text": "one"}, {"text": "w " * 3000}])
    with pytest.raises(CorpusError, match=r"a\.txt, line 2: the text has 3,0\d\d tokens with its prompt and the limit"):
        embed(engine, source, tmp_path / "v.npy", settings=Options(truncate="none"))


def test_a_changed_input_is_refused(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(40)]
    source = write(tmp_path / "a.jsonl", [*rows, {"text": None}])
    with pytest.raises(CorpusError, match="line 41"):
        embed(engine, source, tmp_path / "v.npy")
    rows[20] = {"text": "changed"}
    with pytest.raises(
        CorpusError, match=r"the input has changed .* between 17 and 32 .*; restore it, or delete .*parts"
    ):
        embed(engine, write(source, rows), tmp_path / "v.npy")


def test_changed_settings_and_a_second_run_are_refused(tmp_path: Path) -> None:
    parts = Parts(tmp_path / "v.parts")
    parts.open({"task": "clustering", "dimensions": "768"})
    with pytest.raises(CorpusError, match="another run is writing there; wait for it, or name another output"):
        Parts(tmp_path / "v.parts").open({"task": "clustering", "dimensions": "768"})
    parts.close()
    with pytest.raises(
        CorpusError, match="dimensions: it is '256', and the run to go on with had '768'; run it with that"
    ):
        Parts(tmp_path / "v.parts").open({"task": "clustering", "dimensions": "256"})


def test_outputs_that_cannot_be(engine: PackedEngine, tmp_path: Path) -> None:
    (tmp_path / "there.npy").touch()
    for name, problem in (
        ("there.npy", "the file is there already; delete it, or name another"),
        ("v.doc", r"the output's format is 'doc'; name a \.parquet, \.npy or \.jsonl file"),
        ("nowhere/v.npy", "there is no folder .*nowhere; make it first"),
    ):
        with pytest.raises(CorpusError, match=problem):
            check_output(tmp_path / name)
    with pytest.raises(CorpusError, match=r"v\.npy: not written, as no row of the input has a vector"):
        embed(engine, write(tmp_path / "a.jsonl", [{"text": ""}]), tmp_path / "v.npy", skip=True)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse to write more than `size` bytes to a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_shard_that_cannot_be_written_stops_the_run(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(48)]
    source = write(tmp_path / "a.jsonl", [*rows[:16], *({"text": "same"} for _ in range(16)), *rows[16:]])
    output = tmp_path / "v.parquet"
    with (
        file_size_limit(16_000),
        pytest.raises(CorpusError, match=r"v\.parquet\.parts: cannot be written: File too la"),
    ):
        embed(engine, source, output)
    assert not list(parts_of(output).glob("*.partial*")), "nothing half written"
    embed(engine, source, output)
    assert len(rows_of(output)) == 64


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
def test_a_full_disk_leaves_no_output_and_keeps_what_is_done(engine: PackedEngine, tmp_path: Path, form: str) -> None:
    source, output = write(tmp_path / "a.jsonl", ROWS), tmp_path / f"v.{form}"
    os.symlink("/dev/full", tmp_path / f"v.{form}.partial")
    with pytest.raises(
        CorpusError, match=r"cannot be written: No space left on device; what is done is kept there: make"
    ):
        embed(engine, source, output)
    assert not output.exists()
    last = embed(engine, source, output)
    assert last.resumed == len(ROWS) and len(vectors_of(output)) == len(ROWS)


def test_ten_megabytes_in_one_text(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "word " * 2_000_000}, {"text": "short"}])
    embed(engine, source, tmp_path / "v.parquet")
    first, _ = rows_of(tmp_path / "v.parquet")
    assert (first["token_count"], first["truncated"]) == (2048, True)


def test_late_chunks_are_stored_with_their_ranges(engine: PackedEngine, tmp_path: Path) -> None:
    long = "The committee met again on Tuesday and could not agree. " * 20
    source = write(tmp_path / "a.jsonl", [{"text": "short"}, {"text": long}])
    late = Options(chunking=Chunking(64, late=True))
    embed(engine, source, tmp_path / "v.parquet", settings=late)
    rows, found = rows_of(tmp_path / "v.parquet"), vectors_of(tmp_path / "v.parquet")
    assert "".join(long[row["start"] : row["end"]] for row in rows[1:]) == long
    alone = one_by_one(engine, ["short", *(long[r["start"] : r["end"]] for r in rows[1:])], [None] * len(rows), "none")
    cosines = (found * one_by_one(engine, ["short"], [None], "retrieval_document")).sum(axis=1)
    assert abs(cosines[0] - 1) < 1e-6, "a text of one chunk has its ordinary vector"
    assert ((found[1:] * alone[1:]).sum(axis=1) < 0.9999).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
