"""Several files as one corpus: what they have in common, what is refused, and what one bad file costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus.blocks import BlockLimits
from corpus.inputs import Inputs
from corpus.rows import BadRow, Columns, CorpusError, Row
from corpus.shards import shards_path
from engine.packed import PackedEngine
from tests.support.corpora import embed, output_rows, output_vectors, texts, write
from texts.options import Options

SUFFIXES = [
    *(f".{form}{packing}" for form in ("jsonl", "csv") for packing in ("", ".gz", ".bz2", ".xz", ".zst")),
    *(".parquet", ".arrow", ".arrows", ".feather", ".ndjson"),
]
ROWS: list[dict[str, Any]] = [
    {"key": f"k{i}", "text": text, "head": f"Head {i}" if i % 3 else "", "note": f"n{i}"}
    for i, text in enumerate([*texts(180), *texts(20)])
]
COLUMNS = Columns(title="head", id="key", carried=("note",))


def rows_of(source: Path | str, columns: Columns, **options: Any) -> list[Row | BadRow]:
    return list(Inputs([str(source)], columns, **options).rows())


def refusal(source: Path, columns: Columns, **options: Any) -> str:
    with pytest.raises(CorpusError) as raised:
        rows_of(source, columns, **options)
    return str(raised.value).replace(f"{source}/", "")


def test_fifty_files_of_all_formats_equal_one(engine: PackedEngine, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for i in range(50):
        inner = folder / f"part={i // 20}"
        inner.mkdir(parents=True, exist_ok=True)
        write(inner / f"{i:02d}{SUFFIXES[i % len(SUFFIXES)]}", ROWS[i * 4 : i * 4 + 4])
    write(tmp_path / "one.parquet", ROWS)
    embed(engine, tmp_path / "one.parquet", tmp_path / "one-v.parquet", COLUMNS)
    many = embed(engine, folder, tmp_path / "many-v.parquet", COLUMNS)
    assert (many.rows, many.read, many.expected) == (200, 200, 200)
    one, all_rows = tmp_path / "one-v.parquet", tmp_path / "many-v.parquet"
    assert output_vectors(all_rows).tobytes() == output_vectors(one).tobytes()
    assert output_rows(all_rows) == output_rows(one)


def test_rows_are_told_by_file_and_number(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [{"text": "three"}])
    write(tmp_path / "a.txt", [{"text": "one"}, {"text": " "}, {"text": "two"}])
    inputs = Inputs([str(tmp_path)], Columns())
    rows = list(inputs.rows())
    assert [getattr(row, "id", None) for row in rows] == ["a.txt#1", None, "a.txt#3", "b.jsonl#1"]
    assert inputs.id_type == pa.string()
    assert [inputs.place(row) for row in rows[1:3]] == [f"{tmp_path}/a.txt, line 2", f"{tmp_path}/a.txt, line 3"]
    alone = Inputs([str(tmp_path / "a.txt")], Columns())
    assert [getattr(row, "id", None) for row in alone.rows()] == [1, None, 3] and alone.id_type == pa.int64()
    matched = Inputs([str(tmp_path / "b.*")], Columns())
    assert [getattr(row, "id", None) for row in matched.rows()] == ["b.jsonl#1"], "tomorrow more may match"


def test_folders_names_are_columns(engine: PackedEngine, tmp_path: Path) -> None:
    for year, name in (("2024", "a.jsonl"), ("2025", "b.csv"), ("__HIVE_DEFAULT_PARTITION__", "c.parquet")):
        (tmp_path / f"in/year={year}/lang=a%2Fb").mkdir(parents=True)
        write(tmp_path / f"in/year={year}/lang=a%2Fb" / name, [{"text": f"one of {year}"}])
    columns = Columns(title="lang", carried=("year",))
    rows = rows_of(tmp_path / "in", columns)
    assert [(row.title, row.carried) for row in rows if isinstance(row, Row)] == [
        ("a/b", ("2024",)),
        ("a/b", ("2025",)),
        ("a/b", (None,)),
    ]
    embed(engine, tmp_path / "in", tmp_path / "v.parquet", Columns(id="lang", carried=("year",)))
    assert [(row["id"], row["year"]) for row in output_rows(tmp_path / "v.parquet")] == [
        ("a/b", "2024"),
        ("a/b", "2025"),
        ("a/b", None),
    ]
    write(tmp_path / "in/year=2024/lang=a%2Fb/a.jsonl", [{"text": "one", "year": 1999}])
    assert rows_of(tmp_path / "in", columns)[0].carried == ("1999",), "the file's own column counts"  # type: ignore[union-attr]


TYPES: list[tuple[list[pa.Array], pa.DataType | str]] = [
    ([pa.array([1], pa.int32()), pa.array([2], pa.int64())], pa.int64()),
    ([pa.array([1], pa.uint8()), pa.array([-2], pa.int8())], pa.int16()),
    ([pa.array([None], pa.null()), pa.array([2], pa.int64())], pa.int64()),
    ([pa.array([1.5], pa.float32()), pa.array([2.5], pa.float64())], pa.float64()),
    ([pa.array(["a"], pa.large_string()), pa.array(["b"])], pa.large_string()),
    ([pa.array(["a"]).dictionary_encode(), pa.array(["b"])], pa.string()),
    ([pa.array([1], pa.timestamp("ms")), pa.array([2], pa.timestamp("us"))], pa.timestamp("us")),
    ([pa.array([{"a": 1}]), pa.array([{"b": "x"}])], pa.struct([("a", pa.int64()), ("b", pa.string())])),
    ([pa.array([1]), pa.array([1], pa.uint64())], "b.parquet: c: its type is uint64, and int64 in a.parquet; write"),
    ([pa.array([1]), pa.array([1.5])], "b.parquet: c: its type is double, and int64 in a.parquet; write the column"),
    ([pa.array([1]), pa.array(["1"])], "b.parquet: c: its type is string, and int64 in a.parquet; write the column"),
    ([pa.array(["1"]), pa.array([b"1"])], "b.parquet: c: its type is binary, and string in a.parquet; write"),
    ([pa.array([1], pa.timestamp("s", "UTC")), pa.array([1], pa.timestamp("s"))], "b.parquet: c: its type is timestam"),
]


@pytest.mark.parametrize(("arrays", "expected"), TYPES, ids=[f"{a[0].type}-{a[1].type}" for a, _ in TYPES])
def test_types_that_differ_become_one_that_holds_all_or_are_refused(
    engine: PackedEngine, tmp_path: Path, arrays: list[pa.Array], expected: pa.DataType | str
) -> None:
    (tmp_path / "in").mkdir()
    for name, array in zip("ab", arrays, strict=True):
        pq.write_table(pa.table({"text": [f"text {name}"], "c": array}), tmp_path / "in" / f"{name}.parquet")
    if isinstance(expected, str):
        assert refusal(tmp_path / "in", Columns(carried=("c",))).startswith(expected)
        return
    embed(engine, tmp_path / "in", tmp_path / "v.parquet", Columns(carried=("c",)))
    column = pq.read_table(tmp_path / "v.parquet")["c"].combine_chunks()
    assert column.type == expected
    assert column.equals(pa.concat_arrays([array.cast(expected) for array in arrays]))


def test_a_value_that_does_not_fit_the_type_of_all_names_its_file(tmp_path: Path) -> None:
    far = pa.array([1 << 62], pa.timestamp("ms"))
    pq.write_table(pa.table({"text": ["one"], "c": far}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["two"], "c": pa.array([1], pa.timestamp("ns"))}), tmp_path / "b.parquet")
    assert refusal(tmp_path, Columns(carried=("c",))).startswith("a.parquet, row 1: c: not all of timestamp[")


def test_ids_of_different_types(tmp_path: Path) -> None:
    def ids(first: pa.Array, *lines: str) -> list[Any]:
        pq.write_table(pa.table({"text": texts(len(first)), "k": first}), tmp_path / "a.parquet")
        (tmp_path / "b.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return [getattr(row, "id", None) or getattr(row, "problem", "") for row in rows_of(tmp_path, Columns(id="k"))]

    assert ids(pa.array([1], pa.int32()), '{"text": "x", "k": 5000000000}') == [1, 5_000_000_000]
    assert Inputs([str(tmp_path)], Columns(id="k")).id_type == pa.int64()
    assert ids(pa.array([1], pa.uint64()), '{"text": "x", "k": 18446744073709551615}') == [1, (1 << 64) - 1]
    assert "k: it is -1 and ids" in ids(pa.array([1], pa.uint64()), '{"text": "x", "k": -1}')[1]
    assert "k: it is 9223372036854775808 and ids" in ids(pa.array([1]), '{"text": "x", "k": 9223372036854775808}')[1]
    assert "k: it is 2 and ids before it were a string" in ids(pa.array(["a"]), '{"text": "x", "k": 2}')[1]
    (tmp_path / "c.csv").write_text("k,text\n1,one\n", encoding="utf-8")
    pq.write_table(pa.table({"text": ["x"], "k": [1]}), tmp_path / "a.parquet")
    assert refusal(tmp_path, Columns(id="k")) == (
        "c.csv: k: its type is string, and int64 in a.parquet; write the column as one type, or leave a file out"
    )


@pytest.mark.parametrize(
    ("first", "other", "kind"),
    [("x", 5, pa.string()), (5, "x", pa.int64()), (1 << 63, -1, pa.uint64()), (7, 1 << 63, pa.int64())],
    ids=["string", "int64", "uint64", "beyond"],
)
def test_files_read_apart_have_the_ids_of_the_first_row(
    tmp_path: Path, first: int | str, other: int | str, kind: pa.DataType
) -> None:
    write(tmp_path / "a.jsonl", [{"id": first, "text": "one"}])
    write(tmp_path / "b.jsonl", [{"id": first, "text": "two"}, {"id": other, "text": "three"}])
    inputs = Inputs([str(tmp_path)], Columns(id="id"))
    inputs.settle_ids()
    assert inputs.id_type == kind
    good, bad = inputs.only("b.jsonl").rows()
    assert isinstance(good, Row) and good.id == first
    assert isinstance(bad, BadRow) and bad.problem.startswith("id: it is ")


def test_a_column_that_a_file_lacks(engine: PackedEngine, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    forms = ("a.parquet", "b.jsonl", "c.csv", "d.arrow")
    for name in forms:
        write(folder / name, [{"text": f"a text of {name}", "head": "x"}])
    write(folder / "e.parquet", [{"text": "another", "head": "x", "note": "here"}])
    write(folder / "f.txt", [{"text": "a line"}])
    embed(engine, folder, tmp_path / "v.parquet", Columns(carried=("note",)))
    assert [row["note"] for row in output_rows(tmp_path / "v.parquet")] == [None, None, None, None, "here", None]
    assert refusal(folder, Columns(carried=("nix",))) == "carry: no file has a column 'nix'; name a column of the input"
    assert refusal(folder, Columns(title="head")).startswith("f.txt: a .txt file has no columns to name; use .jsonl")
    (folder / "f.txt").unlink()
    for name, where in zip(forms, ("", "", ", line 1", ""), strict=True):
        write(folder / name, [{"text": "one", "other": "x"}])
        assert refusal(folder, Columns(title="head")).startswith(f"{name}{where}: no ")
        rows = rows_of(folder, Columns(title="head"), skip=True)
        assert [(row.number, row.file) for row in rows if isinstance(row, BadRow)] == [(0, name)]
        write(folder / name, [{"text": "one", "head": "x"}])


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-200:] = bytes(200)
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["b.parquet", "b.arrow", "b.jsonl.gz", "b.csv.zst", "b.txt.xz"])
def test_a_damaged_file_is_named_and_the_rest_is_done(engine: PackedEngine, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for other, first in (("a.txt", 0), ("c.txt", 900)):
        write(folder / other, [{"text": text} for text in texts(3, first)])
    damage(write(folder / name, [{"text": text} for text in texts(600, 10)]))
    with pytest.raises(CorpusError, match=rf"^{folder}/{name}.*(cannot be read further|not a whole)"):
        embed(engine, folder, tmp_path / "v.parquet")
    last = embed(engine, folder, tmp_path / "v.parquet", skip=True)
    ids = [row["id"] for row in output_rows(tmp_path / "v.parquet")]
    assert ids[:3] == ["a.txt#1", "a.txt#2", "a.txt#3"] and ids[-3:] == ["c.txt#1", "c.txt#2", "c.txt#3"]
    kept = [int(row_id.partition("#")[2]) for row_id in ids[3:-3]]
    first = 2 if ".csv" in name else 1
    assert kept == list(range(first, first + len(kept))), "the rows before the damage"
    [skipped] = map(json.loads, (tmp_path / "v.skipped.jsonl").read_text().splitlines())
    assert skipped["file"] == name and last.skipped == 1
    assert skipped["number"] == kept[-1] + 1 if kept else skipped["number"] in (0, 1)
    assert ("the file is not read further: " in skipped["problem"]) == (skipped["number"] > 0)


def test_no_file_that_can_be_read_stops(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.parquet").write_bytes(b"nothing")
    assert refusal(tmp_path, Columns(), skip=True).startswith("a.parquet: not a whole parquet file")
    (tmp_path / "c.doc").touch()
    assert refusal(tmp_path, Columns()).startswith("a.parquet: not a whole parquet file")
    (tmp_path / "d.txt").write_text("one\n", encoding="utf-8")
    problems = [row for row in rows_of(tmp_path, Columns(), skip=True) if isinstance(row, BadRow)]
    assert [row.file for row in problems] == ["a.parquet", "b.parquet", "c.doc"]
    assert problems[2].problem.startswith("the format is told by the end of the name")


def test_what_is_out_of_reach_is_never_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", [{"text": "one"}])
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone")
    assert "b.txt: cannot be opened: No such file" in refusal(tmp_path, Columns(), skip=True)


CHANGES: list[tuple[str, Callable[[Path], object]]] = [
    ("changed", lambda folder: write(folder / "a.jsonl", [{"text": "other"}, {"text": "two"}])),
    ("appeared", lambda folder: write(folder / "0.jsonl", [{"text": "zero"}])),
    ("vanished", lambda folder: (folder / "a.jsonl").unlink()),
    ("renamed", lambda folder: (folder / "a.jsonl").rename(folder / "0.jsonl")),
]


@pytest.mark.parametrize(("what", "change"), CHANGES, ids=[what for what, _ in CHANGES])
@pytest.mark.parametrize("ids", [None, "text"])
def test_a_run_that_goes_on_notices_other_files(
    engine: PackedEngine, tmp_path: Path, what: str, change: Callable[[Path], object], ids: str | None
) -> None:
    folder, output, limits = tmp_path / "in", tmp_path / "v.parquet", BlockLimits(rows=2)
    folder.mkdir()
    for name in "abc":
        write(folder / f"{name}.jsonl", [{"text": f"one of {name}"}, {"text": "two"}])
    write(folder / "d.jsonl", [{"text": None}])
    with pytest.raises(CorpusError, match=r"d\.jsonl, line 1: text: it is null"):
        embed(engine, folder, output, Columns(id=ids), limits=limits)
    assert len(list(shards_path(output).glob("0*"))) == 3
    change(folder)
    with pytest.raises(CorpusError, match="the input has changed since the run was begun, between"):
        embed(engine, folder, output, Columns(id=ids), limits=limits)


def test_files_that_come_after_what_is_done_are_read(engine: PackedEngine, tmp_path: Path) -> None:
    folder, output, limits = tmp_path / "in", tmp_path / "v.parquet", BlockLimits(rows=2)
    folder.mkdir()
    write(folder / "a.jsonl", [{"text": "one"}, {"text": "two"}])
    write(folder / "b.jsonl", [{"text": None}])
    with pytest.raises(CorpusError):
        embed(engine, folder, output, limits=limits)
    write(folder / "b.jsonl", [{"text": "mended"}])
    write(folder / "c.jsonl", [{"text": "new"}])
    last = embed(engine, folder, output, limits=limits)
    assert (last.rows, last.resumed) == (4, 2)
    assert [row["id"] for row in output_rows(output)] == ["a.jsonl#1", "a.jsonl#2", "b.jsonl#1", "c.jsonl#1"]


def test_all_columns(engine: PackedEngine, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "lang=en").mkdir(parents=True)
    write(folder / "a.csv", [{"text": "one", "id": "1", "b": "x"}])
    write(folder / "b.parquet", [{"c": 5, "text": "two", "id": "2"}])
    write(folder / "lang=en/c.jsonl", [{"text": "three", "id": "3"}, {"text": "four", "id": "4", "b": "y", "d": "z"}])
    embed(engine, folder, tmp_path / "v.parquet", Columns(id="id", carry_all=True))
    rows = output_rows(tmp_path / "v.parquet")
    facts = ("id", "token_count", "truncated", "prompted")
    assert [[row[name] for name in ("text", "b", "c", "lang", "d")] for row in rows] == [
        ["one", "x", None, None, None],
        ["two", None, 5, None, None],
        ["three", None, None, "en", None],
        ["four", "y", None, "en", "z"],
    ]
    assert {*rows[0]} == {*facts, "text", "b", "c", "lang", "d", "embedding", "text_hash"}
    assert refusal(folder, Columns(carry_all=True)) == (
        "carry: 'id' is a column of the output itself; name it with --id, or rename it in the input"
    )
    many = {f"k{i}": i for i in range(1001)}
    write(folder / "lang=en/c.jsonl", [{"text": "three", "id": "3"} | many])
    assert "c.jsonl: its rows have more than 1,000 keys; name those to carry" in refusal(
        folder, Columns(id="id", carry_all=True)
    )


def test_one_files_columns_are_all_carried(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "one", "m": {"x": "t"}, "n": 1}])
    inputs = Inputs([str(path)], Columns(text="m.x", carry_all=True))
    assert inputs.columns.carried == ("text", "m", "n")
    [row] = inputs.rows()
    assert row == Row(1, "t", None, 1, ('"one"', '{"x": "t"}', "1"))


def test_how_many_rows_there_are_is_known_where_files_tell(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.arrow", "c.feather"):
        write(tmp_path / name, [{"text": text} for text in texts(300)])
    inputs = Inputs([str(tmp_path)], Columns())
    assert {inputs.expected() for _ in inputs.rows()} == {(900, True)}
    (tmp_path / "d.txt").write_text("".join(f"{text}\n" for text in texts(100_000)), encoding="utf-8")
    inputs = Inputs([str(tmp_path)], Columns())
    after = [inputs.expected() for i, _ in enumerate(inputs.rows()) if i % 10_000 == 5_000]
    assert all(not known and abs(rows - 100_900) < 6_000 for rows, known in after), after
    assert inputs.expected() == (100_900, True)


def test_options_of_a_run_hold_for_all_files(engine: PackedEngine, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in "ab":
        write(tmp_path / "in" / f"{name}.txt", [{"text": "w " * 3000}])
    with pytest.raises(CorpusError, match=rf"{tmp_path}/in/a\.txt, line 1: the text has 3,010 tokens"):
        embed(engine, tmp_path / "in", tmp_path / "v.parquet", options=Options(truncate="none"))
    with pytest.raises(CorpusError, match=r"no row of the input has a vector; the first, number 1 of a\.txt: the te"):
        embed(engine, tmp_path / "in", tmp_path / "v.parquet", options=Options(truncate="none"), skip=True)
