"""Arrow's files and streams, and columns within columns."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from corpus.readers import Reader
from corpus.rows import BadRow, Columns, CorpusError, Row
from engine.packed import PackedEngine
from tests.support.corpora import embed, output_rows, texts, write

ROWS = [{"text": text, "key": i, "unread": [i] * 3} for i, text in enumerate(texts(1000))]


def read(path: Path, columns: Columns | None = None) -> list[Row | BadRow]:
    return list(Reader(str(path), columns or Columns()).rows())


def refusal(path: Path, columns: Columns | None = None) -> str:
    with pytest.raises(CorpusError) as raised:
        read(path, columns)
    return str(raised.value).removeprefix(str(path))


@pytest.mark.parametrize("name", ["a.arrow", "a.arrows", "a.feather"])
def test_rows_of_arrows_files_are_those_of_parquet(tmp_path: Path, name: str) -> None:
    columns = Columns(id="key", carried=("unread",))
    expected = read(write(tmp_path / "a.parquet", ROWS), columns)
    reader = Reader(str(write(tmp_path / name, ROWS)), columns)
    assert list(reader.rows()) == expected and len(expected) == 1000
    assert reader.num_rows == (None if name == "a.arrows" else 1000)
    assert reader.place(7) == f"{tmp_path / name}, row 7"


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_batches(tmp_path: Path, compression: str) -> None:
    feather.write_feather(
        pa.Table.from_pylist(ROWS), str(tmp_path / "a.feather"), compression=compression, chunksize=90
    )
    assert [row.text for row in read(tmp_path / "a.feather") if isinstance(row, Row)] == texts(1000)


def test_what_is_no_file_of_arrows_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.arrow"
    whole = write(tmp_path / "whole.arrow", ROWS).read_bytes()
    remedy = "; its beginning or end, which says what it holds, is missing or damaged: copy or write it anew"
    for content in (b"", b"text\none\n", b"ARROW1", whole[:1000], whole[:-1]):
        path.write_bytes(content)
        assert (said := refusal(path)).startswith(": not a whole arrow file: ") and said.endswith(remedy), said
    path.write_bytes(b"FEA1" + bytes(100))
    assert refusal(path).startswith(": not a whole arrow file: it is Feather of version 1, which few programs read")
    stream = write(tmp_path / "b.arrows", ROWS).read_bytes()
    path.write_bytes(stream[: len(stream) // 2])
    assert refusal(path).endswith("; the file is damaged: copy or write it anew")


def test_offsets_that_lead_nowhere_are_damage(tmp_path: Path) -> None:
    """Looked at, they would end the process."""
    values = [f"{i:040}" for i in range(100)]
    path = write(tmp_path / "a.arrow", [{"text": value} for value in values])
    content = path.read_bytes()
    at = content.index((40).to_bytes(4, "little") + (80).to_bytes(4, "little"))
    for wrong in (-1, 1 << 30, 79):
        path.write_bytes(content[: at + 200] + wrong.to_bytes(4, "little", signed=True) + content[at + 204 :])
        assert "cannot be read further: " in refusal(path) or wrong == 79


@pytest.mark.fuzz
def test_any_damage_ends_in_a_sentence(tmp_path: Path) -> None:
    table = pa.table({"text": texts(300), "s": [{"a": [text]} for text in texts(300)]})
    table = table.append_column("d", pa.array(texts(300)).dictionary_encode())
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    whole, generator, said = (tmp_path / "a.arrow").read_bytes(), random.Random(1), set[str]()
    for _ in range(300):
        content = bytearray(whole)
        at = generator.randrange(len(content))
        content[at : at + 4] = generator.randbytes(4)
        (tmp_path / "a.arrow").write_bytes(content)
        try:
            rows = read(tmp_path / "a.arrow", Columns(title="d", carried=("s",)))
            said.add(f"{len(rows)} rows")
        except CorpusError as error:
            said.add(error.problem.partition(":")[0])
    print(said)
    assert len(said) > 2


def test_a_batch_of_any_size_is_read_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS_PARQUET_MB", "64")
    table = pa.table({"text": [f"{i}" * 1000 for i in range(10_000, 30_000)]})  # 100 MB
    for name, packing in (("a.arrow", "uncompressed"), ("b.arrow", "zstd")):
        feather.write_feather(table, str(tmp_path / name), compression=packing, chunksize=1 << 20)
    assert sum(1 for _ in Reader(str(tmp_path / "a.arrow"), Columns()).rows()) == 20_000
    assert refusal(tmp_path / "b.arrow") == (
        ", row 1: reading it takes more than 64 MB; write it in smaller pages or batches, or set CORPUS_PARQUET_MB to "
        "more"
    )


def test_strings_that_are_no_utf8_are_bad_rows(tmp_path: Path) -> None:
    broken = pa.array([b"one", b"\xff", b"three"], pa.binary()).view(pa.string())
    table = pa.table({"text": broken, "list": [["a"], None, ["b"]]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    first, bad, last = read(tmp_path / "a.arrow", Columns(carried=("list",)))
    assert isinstance(first, Row) and isinstance(last, Row)
    assert isinstance(bad, BadRow) and bad.problem.startswith("text: not UTF-8: byte 0xFF at byte 0")


PAGES: list[dict[str, Any]] = [
    {"page": {"body": "one", "meta": {"url": "u1", "n": 1}}, "a.b": "x"},
    {"page": {"body": "two", "meta": None}, "a.b": "y"},
    {"page": None, "a.b": "z"},
    {"page": {"body": "four", "meta": {"url": "u4", "n": 4}}, "a.b": None},
]
NESTED = Columns("page.body", title="page.meta.url", carried=("page.meta.n", "a.b", "page.meta"))


@pytest.mark.parametrize("form", ["parquet", "arrow", "jsonl"])
def test_columns_within_columns(engine: PackedEngine, tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"a.{form}", PAGES)
    embed(engine, path, tmp_path / "v.jsonl", NESTED, skip=True)
    rows = output_rows(tmp_path / "v.jsonl")
    assert [row["page.meta.n"] for row in rows] == [1, None, 4]
    assert [row["a.b"] for row in rows] == ["x", "y", None]
    assert [row["page.meta"] for row in rows] == [{"url": "u1", "n": 1}, None, {"url": "u4", "n": 4}]
    one, two, bad, _ = read(path, NESTED)
    assert isinstance(one, Row) and (one.text, one.title) == ("one", "u1")
    assert isinstance(two, Row) and (two.text, two.title) == ("two", None)
    assert isinstance(bad, BadRow)
    words = "no 'page.body' among" if form == "jsonl" else "page.body: it is null"
    assert bad.problem.startswith(words)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_a_name_with_dots_comes_before_columns_within_columns(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"a.{form}", [{"a.b": "here", "a": {"b": "there", "c.d": {"e": "within"}}}])
    assert [row.text for row in read(path, Columns("a.b")) if isinstance(row, Row)] == ["here"]
    assert [row.text for row in read(path, Columns("a.c.d.e")) if isinstance(row, Row)] == ["within"]


def test_columns_within_columns_that_are_not_there_or_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", PAGES)
    for name in ("page.nix", "page.meta.url.x", "nix.body", "page."):
        assert (
            refusal(path, Columns(name)) == f": no column {name!r} among 'page', 'a.b'; name the column that holds it"
        )
    assert refusal(path, Columns("page.meta")).startswith(": page.meta: its type is struct; texts are strings")
    twice = pa.StructArray.from_arrays([pa.array(["x"]), pa.array(["y"])], ["b", "b"])
    pq.write_table(pa.table({"a": twice}), path)
    assert refusal(path, Columns("a.b")) == ": 2 columns are named 'a.b'; rename all but one"
    lines = write(tmp_path / "a.jsonl", [{"text": "x", "m": {"n": float("nan")}}])
    [row] = read(lines, Columns(carried=("m.n",)))
    assert row == BadRow(1, "m.n: it holds NaN or Infinity, which JSON has not; write null in its place")


def test_names_of_many_dots_cost_no_more_than_their_beginning(tmp_path: Path) -> None:
    deep: Any = "here"
    for _ in range(400):
        deep = {"a": deep}
    path = write(tmp_path / "a.jsonl", [{"text": "x", **deep}] * 3)
    for dots in (100, 399, 1_000_000):
        [row, *_] = read(path, Columns(".".join("a" * (dots + 1))))
        assert isinstance(row, BadRow) and len(row.problem) < 300
    lines = write(tmp_path / "b.jsonl", [{"a": {"a": {"a": "here"}}}])
    assert [row.text for row in read(lines, Columns("a.a.a")) if isinstance(row, Row)] == ["here"]
