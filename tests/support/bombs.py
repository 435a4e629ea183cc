"""Small files that unfold to much: for each kind a function that writes one, and what it is called."""

import bz2
import gzip
import json
import lzma
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.lines import zstd

MB = 1 << 20
CHUNK = b"x" * MB
# What most bombs unfold to; more than files may that are as small.
UNFOLDED_MB = int(os.environ.get("BOMBS_MB", 300))

Bomb = Callable[[Path], None]
BOMBS: dict[str, Bomb] = {}
"""Each writes a file of the name that it is under, of which `text` and `id` are read, and `load` is carried."""


def bomb(name: str) -> Callable[[Bomb], Bomb]:
    def add(write: Bomb) -> Bomb:
        BOMBS[name] = write
        return write

    return add


def repeated(piece: bytes, mb: int = UNFOLDED_MB, before: bytes = b"", after: bytes = b"\n") -> Iterator[bytes]:
    """Yield so many MB of a piece, in large parts."""
    part = piece * max(1, MB // len(piece))
    yield before
    for _ in range(mb):
        yield part
    yield after


def pack(path: Path, content: Iterator[bytes]) -> None:
    """Write content as the end of the name says."""
    if path.suffix == ".zst":
        with zstd.open(path, "wb", level=1) as file:
            file.writelines(content)
    elif path.suffix == ".gz":
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.writelines(content)
    elif path.suffix == ".xz":
        with lzma.open(path, "wb", preset=0) as file:
            file.writelines(content)
    elif path.suffix == ".bz2":
        with bz2.open(path, "wb") as file:
            file.writelines(content)
    else:
        with path.open("wb") as file:
            file.writelines(content)


def packed(name: str, piece: bytes, mb: int = UNFOLDED_MB, before: bytes = b"", after: bytes = b"\n") -> None:
    BOMBS[name] = lambda path: pack(path, repeated(piece, mb, before, after))


packed("one-line.jsonl.zst", b"x", before=b'{"text": "')
packed("one-line.jsonl.gz", b"x", before=b'{"text": "')
packed("one-line.txt.bz2", b"x")
packed("one-line.txt.xz", b"x")
packed("nuls.txt.gz", b"\0")
packed("one-line.txt", b"x", 300)
packed("blank-lines.txt.zst", b"\n", 1)
packed("header.csv.zst", b"c,", before=b"id,text,")
packed("quoted-field.csv.zst", b"x", before=b'id,text,load\n1,"')
packed("quoted-lines.csv.zst", b"x,\n", before=b'id,text,load\n1,"')
packed("columns.csv", b"ab,", 15, b"id,text,load\n1,a,b\n")
packed("columns-over-lines.csv", b'ab,"\n",', 15, b"id,text,load\n1,a,b\n")
packed("wide-text.csv", "é".encode(), 14, b'id,text,load\n1,"' + "😀".encode(), b'",b\n2,a,b\n')
packed("lists.jsonl", b"[],", 15, b'{"text": "a", "id": 1, "load": [', b"1]}\n")
packed("nested.jsonl", b"[", 15, b'{"text": "a", "id": 1, "load": ', b"\n")
packed("digits.jsonl", b"1", 15, b'{"text": "a", "load": 1, "id": ', b"}\n")
packed("quotes.jsonl", b'"",', 15, b'{"text": NaN, "id": 1, "load": [', b"\n")
packed("wide-text.jsonl", b"x", 15, '{"id": 1, "load": 1, "text": "😀'.encode(), b'"}\n')
packed("wide-id.jsonl", b"x", 15, '{"text": "a", "load": 1, "id": "😀'.encode(), b'"}\n')
packed("wide-load.jsonl", b"x", 15, '{"text": "a", "id": "b", "load": "😀'.encode(), b'"}\n')
packed("wide-text.txt", "é".encode(), 15, "😀".encode())
packed("tokens.txt", b"~|", 15)


@bomb("keys.jsonl")
def many_keys(path: Path) -> None:
    keys = (f'"{i:x}":1,'.encode() for i in range(1_400_000))
    pack(path, iter([b'{"text": "a", "id": 1, "load": 2, ', b"".join(keys), b'"z": 1}\n']))


@bomb("long-ids.jsonl.zst")
def long_ids(path: Path) -> None:
    lines = (b'{"text": "a", "load": 1, "id": "%d' % i + b"x" * 8 * MB + b'"}\n' for i in range(40))
    pack(path, iter(lines))


@bomb("long-loads.jsonl.zst")
def long_loads(path: Path) -> None:
    lines = (b'{"text": "a", "id": %d, "load": "' % i + b"x" * 8 * MB + b'"}\n' for i in range(40))
    pack(path, iter(lines))


@bomb("keys-of-bad-rows.jsonl.zst")
def long_keys(path: Path) -> None:
    pack(path, iter([b'{"text": "a", "id": 1, "load": 1}\n', *([b'{"' + b"k" * 2 * MB + b'": 1}\n'] * 100)]))


@bomb("window.txt.zst")
def wide_window(path: Path) -> None:
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 31})
    path.write_bytes(compressor.compress(b"a\n" * MB) + compressor.flush())


@bomb("dictionary.txt.xz")
def wide_dictionary(path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]
    path.write_bytes(lzma.compress(b"a\n" * MB, filters=filters))


@bomb("streams.txt.bz2")
def tiny_streams(path: Path) -> None:
    path.write_bytes(bz2.compress(b"") * 200_000)


@bomb("streams.txt.gz")
def tiny_members(path: Path) -> None:
    path.write_bytes(gzip.compress(b"") * 100_000)


def table(rows: int, **columns: pa.Array) -> pa.Table:
    """Return a table with the columns that are read, and these in their place."""
    ids, ones = pa.array(range(rows)), pa.array(["a"] * rows)
    return pa.table({"id": ids, "text": ones, "load": ones} | columns)


def one_value(value: object, rows: int, kind: pa.DataType) -> pa.Array:
    """Return an array of one value again and again, which takes no memory."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array([value], kind))


@bomb("dictionary.parquet")
def dictionary(path: Path) -> None:
    pq.write_table(table(2000, text=one_value("x" * 10 * MB, 2000, pa.string())), path, compression="zstd")


@bomb("dictionary-without-schema.parquet")
def dictionary_without_schema(path: Path) -> None:
    texts = one_value("x" * 10 * MB, 300, pa.string())
    pq.write_table(table(300, text=texts), path, compression="zstd", store_schema=False)


@bomb("dictionary-of-loads.parquet")
def dictionary_of_loads(path: Path) -> None:
    loads = one_value("x" * 10 * MB, 2000, pa.string())
    pq.write_table(table(2000, load=loads), path, compression="zstd")


@bomb("prefixes.parquet")
def prefixes(path: Path) -> None:
    texts = pa.array(["x" * 4 * MB] * 60)
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pq.write_table(table(60, text=texts).select(["text"]).append_column("id", pa.array(range(60))).append_column(
        "load", pa.array(["a"] * 60)), path, compression="zstd", **options)  # fmt: skip


@bomb("page.parquet")
def one_page(path: Path) -> None:
    texts = pa.array(["x" * MB] * UNFOLDED_MB)
    pq.write_table(
        table(UNFOLDED_MB, text=texts),
        path,
        compression="zstd",
        use_dictionary=False,
        data_page_size=1 << 30,
        write_batch_size=UNFOLDED_MB,
    )


@bomb("list.parquet")
def list_of_one_value(path: Path) -> None:
    count = UNFOLDED_MB // 3 * MB
    values = pa.nulls(count, pa.int8())
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), values)
    pq.write_table(table(1, load=lists), path, compression="zstd", data_page_size=1 << 30, store_schema=False)


@bomb("width.parquet")
def fixed_width(path: Path) -> None:
    loads = pa.array([None], pa.list_(pa.int8(), UNFOLDED_MB * MB))
    pq.write_table(table(1, load=loads), path, compression="zstd")


@bomb("columns.parquet")
def many_columns(path: Path) -> None:
    names = ["id", "text", "load", *(f"c{i}" for i in range(20_000))]
    pq.write_table(pa.table([pa.array(["a"])] * len(names), names=names), path)


def write_arrow(path: Path, content: pa.Table, compression: str | None = None) -> None:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, content.schema, options=options) as writer:
        writer.write_table(content)


@bomb("dictionary.arrow")
def arrows_dictionary(path: Path) -> None:
    write_arrow(path, table(2000, text=one_value("x" * 10 * MB, 2000, pa.string())), "zstd")


@bomb("batch.arrow")
def one_batch(path: Path) -> None:
    write_arrow(path, table(UNFOLDED_MB, load=pa.array(["x" * MB] * UNFOLDED_MB)), "zstd")


@bomb("views.arrow")
def views_of_one_buffer(path: Path) -> None:
    size = 10 * MB
    views = struct.pack("<i4sii", size, b"xxxx", 0, 0) * 2000
    loads = pa.Array.from_buffers(pa.string_view(), 2000, [None, pa.py_buffer(views), pa.py_buffer(b"x" * size)])
    write_arrow(path, table(2000, load=loads), "zstd")


def with_footer(path: Path, footer: bytes) -> None:
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")


@bomb("footer-of-lists.parquet")
def footer_of_lists(path: Path) -> None:
    # version, and a schema of two billion elements
    with_footer(path, b"\x15\x02\x19\xfc\xff\xff\xff\xff\x07" + b"\x00" * 64 * MB)


@bomb("footer-of-a-string.parquet")
def footer_of_a_string(path: Path) -> None:
    with_footer(path, b"\x15\x02\x19\x1c\x48\xff\xff\xff\xff\x07" + b"x" * 1000)


@bomb("documents.parquet")
def documents(path: Path) -> None:
    """Not hostile: documents of 8 MB."""
    pq.write_table(table(40, text=pa.array([f"{i} " + "word " * (8 * MB // 5) for i in range(40)])), path)


@bomb("documents.jsonl.gz")
def documents_of_json(path: Path) -> None:
    """Not hostile: documents of 8 MB."""
    lines = ({"text": f"{i} " + "word " * (8 * MB // 5), "id": i, "load": "c" * 1000} for i in range(20))
    pack(path, (json.dumps(line).encode() + b"\n" for line in lines))
