"""Every type of Arrow in a .parquet, as texts, ids and carried columns: kept unchanged, or refused at once."""

import base64
import io
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus.arrow import for_json, in_utc, plain
from corpus.blocks import BlockLimits, blocks
from corpus.readers import Reader
from corpus.rows import Columns, CorpusError
from engine.packed import PackedEngine
from tests.support.corpora import embed, output_rows, output_vectors, texts

SECOND_ZONES = (None, "UTC", "Europe/Vienna", "+05:30", "Nowhere/Land")
NESTED = pa.timestamp("ns", "Nowhere/Land")


def numbers() -> Iterator[pa.Array]:
    for kind in (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()):
        signed = pa.types.is_signed_integer(kind)
        most = (1 << (kind.bit_width - signed)) - 1
        yield pa.array([0, most, None, -most - 1 if signed else most // 2 + 1], kind)
    for kind in (pa.float16(), pa.float32(), pa.float64()):
        yield pa.array([1.1, math.nan, None, -0.0, -math.inf], pa.float64()).cast(kind, safe=False)
    for kind in (pa.decimal32(9, 2), pa.decimal64(18, 2), pa.decimal128(38, 9), pa.decimal256(76, 30)):
        yield pa.array([Decimal("123400"), None, Decimal("-100")], kind)
    yield pa.array([True, None, False])


def times() -> Iterator[pa.Array]:
    some = pa.array([1, None, 86_399, 1_234_567_890_123_456_789 % 86_399_999])
    days = pa.array([1, None, -86_399, 2_932_896], pa.int32()).cast(pa.date32())  # to the end of 9999
    yield from (days, days.cast(pa.date64()))
    for unit in ("s", "ms"):
        yield pa.array([1, None, 86_399], pa.int32()).cast(pa.time32(unit))
    for unit in ("us", "ns"):
        yield some.cast(pa.time64(unit))
    for unit in ("s", "ms", "us", "ns"):
        yield some.cast(pa.duration(unit))
        for zone in SECOND_ZONES:
            yield pa.array([1, None, -1, 123_456_789_012]).cast(pa.timestamp(unit, zone))


def strings() -> Iterator[pa.Array]:
    some = ["a text", None, "Grüße 東京, which is beyond twelve bytes", "a text"]
    kinds = (pa.string(), pa.large_string(), pa.string_view())
    yield from (pa.array(some, kind) for kind in kinds)
    yield from (pa.array(some, kind).dictionary_encode() for kind in kinds[:2])
    yield pa.array([b"a\0\xff", None, b"", b"which is beyond twelve bytes"], pa.binary())
    yield pa.array([b"a\0\xff", None], pa.large_binary())
    yield pa.array([b"a\0\xff", None, b"which is beyond twelve bytes"], pa.binary_view())
    yield pa.array([b"a\0\xff", None], pa.binary(3))
    yield pa.array([5, None, 6, 5]).dictionary_encode()


def nested() -> Iterator[pa.Array]:
    yield pa.array([[1, None], None, []], pa.list_(NESTED))
    yield pa.array([["a", None], None, []], pa.large_list(pa.string_view()))
    yield pa.array([[1.5, None], None, [2.5, 3.5]], pa.list_(pa.float32(), 2))
    inner = pa.list_(pa.struct([("c", pa.decimal128(9, 2)), ("d", NESTED)]))
    yield pa.array([{"a": 1, "b": [{"c": Decimal(3), "d": 4}]}, None], pa.struct([("a", NESTED), ("b", inner)]))
    yield pa.array([[("k", 1), ("l", None)], None, []], pa.map_(pa.string(), NESTED))
    codes = pa.array(["a", "b", None]).dictionary_encode()
    yield pa.StructArray.from_arrays([codes], ["a"])
    yield pa.nulls(3)
    yield pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUID(int=7).bytes, None], pa.binary(16)))
    yield pa.ExtensionArray.from_storage(pa.json_(), pa.array(['{"a": 1}', None]))
    yield pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None, 0], pa.int8()))
    yield pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "x", "y"), pa.array(["1", None]))


# Types that .parquet cannot hold.
NOT_IN_PARQUET = [
    pa.RunEndEncodedArray.from_arrays([2, 3], pa.array(["a", None])),
    pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    pa.UnionArray.from_sparse(pa.array([0, 0], pa.int8()), [pa.array([1, 2])]),
]
# Types that are refused for carried columns.
VIEWS_OF_LISTS = [
    pa.array([[1, None], None, []], pa.list_view(pa.duration("ns"))),
    pa.array([{"a": [["b"]]}, None], pa.struct([("a", pa.list_(pa.large_list_view(pa.string())))])),
    pa.array([[["b"]], None], pa.large_list_view(pa.list_(pa.string()))),
]
SAMPLES = [*numbers(), *times(), *strings(), *nested()]
ALL = [*SAMPLES, *VIEWS_OF_LISTS]
COUNT = 300  # more than are read at once


def sample_table() -> pa.Table:
    """Return a column of each type, its values repeated; row 7 has no text."""
    columns = {
        f"c{k}": array.take(pa.array([i % len(array) for i in range(COUNT)]))
        if not view(array)
        else pa.concat_arrays([array] * COUNT).slice(0, COUNT)
        for k, array in enumerate(SAMPLES)
    }
    some = [None if i == 7 else f"text {i % 20}" for i in range(COUNT)]
    return pa.table({"text": some, **columns})


def view(array: pa.Array) -> bool:
    """Whether Arrow has no `take` for an array."""
    return "view" in str(array.type)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("types") / "a.parquet"
    pq.write_table(sample_table(), path)
    return path


CARRIED = Columns(carried=tuple(f"c{k}" for k in range(len(SAMPLES))))


def kept(source: Path) -> pa.Table:
    """Return the rows and types of the source that an output should hold."""
    table = pq.read_table(source).slice(0, 7)
    table = pa.concat_tables([table, pq.read_table(source).slice(8)])
    return table.cast(pa.schema([field.with_type(plain(field.type)) for field in table.schema]))


def test_every_type_is_tried() -> None:
    for array in NOT_IN_PARQUET:
        with pytest.raises(pa.ArrowNotImplementedError):
            pq.write_table(pa.table({"c": array}), io.BytesIO())
    tried = {array.type.id for array in [*ALL, *NOT_IN_PARQUET]}
    known = {name: getattr(pa.lib, name) for name in dir(pa.lib) if name.startswith("Type_")}
    missing = {name for name, number in known.items() if number not in tried}
    others = {"Type_DENSE_UNION", "Type_INTERVAL_MONTHS", "Type_INTERVAL_DAY_TIME"}  # like those beside them
    assert missing <= others


@pytest.mark.parametrize("form", ["parquet", "npy"])
def test_carried_columns_keep_every_value(engine: PackedEngine, source: Path, tmp_path: Path, form: str) -> None:
    output = tmp_path / f"v.{form}"
    last = embed(engine, source, output, CARRIED, limits=BlockLimits(rows=64), skip=True)
    assert (last.rows, last.skipped) == (COUNT - 1, 1)
    table = pq.read_table(output if form == "parquet" else output.with_suffix(".rows.parquet"))
    for name in CARRIED.carried:
        expected, actual = kept(source)[name].combine_chunks(), table[name].combine_chunks()
        assert actual.type == expected.type, name
        # NaN is not equal to itself, so the printed columns are compared.
        assert actual.equals(expected) or actual.to_string(window=COUNT) == expected.to_string(window=COUNT), name
    assert len(output_vectors(output)) == COUNT - 1


def restored(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return a column from its values in .jsonl, nulls left out."""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.array(list(map(base64.b64decode, values)), kind)
    if isinstance(kind, pa.BaseExtensionType):
        of: Any = {pa.uuid(): lambda value: UUID(value).bytes, pa.bool8(): int}.get(kind, str)
        return pa.ExtensionArray.from_storage(kind, pa.array(list(map(of, values)), kind.storage_type))
    if pa.types.is_time(kind):  # Arrow reads a time only after a date
        dated = pa.array([f"1970-01-01 {value}" for value in values])
        return dated.cast(pa.timestamp(kind.unit)).cast(kind)
    if pa.types.is_map(kind):
        values = [list(map(tuple, value)) for value in values]
    return pa.array(values, for_json(in_utc(kind))).cast(in_utc(kind)).cast(kind)


def test_jsonl_keeps_every_value(engine: PackedEngine, source: Path, tmp_path: Path) -> None:
    embed(engine, source, tmp_path / "v.jsonl", CARRIED, limits=BlockLimits(rows=64), skip=True)
    rows = output_rows(tmp_path / "v.jsonl")
    for name in CARRIED.carried:
        expected = kept(source)[name].combine_chunks()
        if pa.types.is_floating(expected.type):  # JSON has neither NaN nor infinities
            wanted = [x if x is not None and math.isfinite(x) else None for x in expected.to_pylist()]
            expected = pa.array(wanted, expected.type)
        values = [row[name] for row in rows]
        assert [value is None for value in values] == expected.is_null().to_pylist(), (name, expected.type)
        there = restored([value for value in values if value is not None], expected.type)
        assert there.equals(expected.drop_null()), (name, expected.type)


def test_views_of_lists_are_refused_at_once(tmp_path: Path) -> None:
    for k, array in enumerate(VIEWS_OF_LISTS):
        pq.write_table(pa.table({"text": texts(len(array)), "c": array}), tmp_path / f"{k}.parquet")
        with pytest.raises(CorpusError, match=r"c: its type .*list_view.* cannot be carried; write the column wi"):
            Reader(str(tmp_path / f"{k}.parquet"), Columns(carried=("c",)))


def test_types_that_parquet_has_not_are_refused_at_once(tmp_path: Path) -> None:
    for k, array in enumerate(NOT_IN_PARQUET):
        table = pa.table({"text": texts(len(array)), "c": array})
        with pa.OSFile(str(tmp_path / f"{k}.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        assert len(list(Reader(str(tmp_path / f"{k}.arrow"), Columns()).rows())) == len(array)
        with pytest.raises(CorpusError, match=r"c: its type .* cannot be carried; write the column with lists, or wi"):
            Reader(str(tmp_path / f"{k}.arrow"), Columns(carried=("c",)))


def test_every_type_is_kept_from_arrows_files(engine: PackedEngine, source: Path, tmp_path: Path) -> None:
    table = sample_table()
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=130)
    embed(engine, tmp_path / "a.arrow", tmp_path / "v.parquet", CARRIED, limits=BlockLimits(rows=64), skip=True)
    expected = pa.concat_tables([table.slice(0, 7), table.slice(8)])
    carried = pq.read_table(tmp_path / "v.parquet")
    for name in CARRIED.carried:
        values = expected[name].combine_chunks()
        written = pa.BufferOutputStream()
        pq.write_table(pa.table({name: values.cast(plain(values.type))}), written)
        there = pq.read_table(pa.BufferReader(written.getvalue()))[name].combine_chunks()  # as .parquet keeps it
        assert carried[name].combine_chunks().to_string(window=COUNT) == there.to_string(window=COUNT), name


def test_ids_of_every_type_are_kept_or_refused_at_once(engine: PackedEngine, tmp_path: Path) -> None:
    for k, array in enumerate(ALL):
        array = array.slice(0, 1) if view(array) or array.type == pa.null() else array.drop_null()
        path, output = tmp_path / f"{k}.parquet", tmp_path / f"v{k}.parquet"
        pq.write_table(pa.table({"text": texts(len(array)), "key": array}), path)
        kind = plain(pq.read_schema(path).field("key").type)
        if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            embed(engine, path, output, Columns(id="key"))
            ids = pq.read_table(output)["id"].combine_chunks()
            assert ids.type == kind and ids.to_pylist() == array.to_pylist()
        else:
            with pytest.raises(
                CorpusError, match=r"parquet: key: its type is .*; ids are whole numbers or strings: wr"
            ):
                Reader(str(path), Columns(id="key"))


def test_texts_and_titles_of_every_type_are_read_or_refused_at_once(tmp_path: Path) -> None:
    for k, array in enumerate(ALL):
        path = tmp_path / f"{k}.parquet"
        pq.write_table(pa.table({"text": ["x"] * len(array), "c": array}), path)
        kind = plain(pq.read_schema(path).field("c").type)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            rows = list(Reader(str(path), Columns(text="c")).rows())
            assert [getattr(row, "text", None) for row in rows] == array.to_pylist()
            titled = list(Reader(str(path), Columns(title="c")).rows())
            assert [getattr(row, "title", "none") for row in titled] == array.to_pylist()
            continue
        with pytest.raises(CorpusError, match=r"parquet: c: its type is .*; texts are strings: write the column as st"):
            Reader(str(path), Columns(text="c"))
        if pa.types.is_null(kind):
            assert len(list(Reader(str(path), Columns(title="c")).rows())) == len(array)
        else:
            with pytest.raises(CorpusError, match=r"parquet: c: its type is .*; titles are strings: write the column"):
                Reader(str(path), Columns(title="c"))


def test_the_same_values_make_the_same_blocks_and_others_do_not(source: Path, tmp_path: Path) -> None:
    def digests(path: Path) -> list[str]:
        reader = Reader(str(path), CARRIED)
        limits = BlockLimits(rows=100)
        return [
            block.digest
            for block in blocks(reader.rows(exact=True), limits, reader.carried_fields, True, reader.id_type)
        ]

    before = digests(source)
    assert len(before) == 3 and digests(source) == before
    table, k = sample_table(), 30
    column = table[f"c{k}"]
    column = pa.chunked_array([*column.slice(0, 120).chunks, *column.slice(121, 1).chunks, *column.slice(121).chunks])
    pq.write_table(table.set_column(k + 1, f"c{k}", column), tmp_path / "b.parquet")
    assert [a == b for a, b in zip(before, digests(tmp_path / "b.parquet"), strict=True)] == [True, False, True]


def test_times_of_96_bits_keep_their_years(engine: PackedEngine, tmp_path: Path) -> None:
    when = pa.array([253_402_300_799_999_999, None, 1], pa.int64()).cast(pa.timestamp("us"))  # the end of 9999
    table = pa.table({"text": texts(3), "when": when})
    pq.write_table(table, tmp_path / "a.parquet", use_deprecated_int96_timestamps=True)
    embed(engine, tmp_path / "a.parquet", tmp_path / "v.parquet", Columns(carried=("when",)))
    assert pq.read_table(tmp_path / "v.parquet")["when"].combine_chunks().equals(when)


def test_columns_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    table = pa.table([texts(2), texts(2), texts(2)], names=["text", "twice", "twice"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert len(list(Reader(str(tmp_path / "a.parquet"), Columns()).rows())) == 2, "nobody asked for them"
    for columns in (Columns(text="twice"), Columns(id="twice"), Columns(carried=("twice",))):
        with pytest.raises(CorpusError, match=r"a\.parquet: 2 columns are named 'twice'; rename all but one"):
            Reader(str(tmp_path / "a.parquet"), columns)
    with pytest.raises(CorpusError, match="carry: 'text' is named 2 times; name it once"):
        Columns(carried=("text", "text"))
    with pytest.raises(CorpusError, match="carry: '#text' is a name that a run uses itself; rename it in the input"):
        Columns(carried=("#text",))


def test_carried_strings_that_are_no_utf8_are_bad_rows(tmp_path: Path) -> None:
    notes = pa.array([b"one", b"\xff", None], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts(3), "note": notes}), tmp_path / "a.parquet")
    first, bad, last = Reader(str(tmp_path / "a.parquet"), Columns(carried=("note",))).rows(exact=True)
    assert "problem" not in first.__slots__ and "problem" not in last.__slots__
    assert bad.problem == "note: not UTF-8, or damaged; write the column anew, or do not carry it"  # type: ignore[union-attr]


def test_jsonl_keeps_numbers_beyond_64_bits_and_spelling(engine: PackedEngine, tmp_path: Path) -> None:
    note = '{"big": 123456789012345678901234567890, "pi": 3.14159265358979323846264, "e": 1e5, "é": "\\u00e9"}'
    (tmp_path / "a.jsonl").write_text(f'{{"text": "one", "note": {note}}}\n{{"text": "two"}}\n', encoding="utf-8")
    for form in ("jsonl", "parquet"):
        embed(engine, tmp_path / "a.jsonl", tmp_path / f"v.{form}", Columns(carried=("note",)))
    assert f'"note":{note}' in (tmp_path / "v.jsonl").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "v.jsonl").read_text().splitlines()[1])["note"] is None
    assert pq.read_table(tmp_path / "v.parquet")["note"].to_pylist() == [note, None]
