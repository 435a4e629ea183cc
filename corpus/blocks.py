"""Blocks of rows, which are computed and stored at once, with exact duplicates found.

Blocks depend only on the rows and the limits. Read again, a corpus gives the same blocks, so an interrupted run can
continue and produce the same bytes.
"""

import hashlib
import io
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpus.inputs import Inputs
from corpus.rows import INNER_COLUMNS, BadRow, Row, UnfitRow
from texts.chunking import Chunking

DIGEST_BYTES = 16
# Columns of a block's rows beside `id` and the carried columns, under names that no carried column has.
NUMBER, BLOCK, TEXT, PROBLEM, FILE, HASH = INNER_COLUMNS
BLOCK_COLUMNS = {
    NUMBER: pa.int64(),
    BLOCK: pa.int32(),
    TEXT: pa.int32(),
    PROBLEM: pa.string(),
    FILE: pa.string(),
    HASH: pa.binary(DIGEST_BYTES),
}
Source = tuple[int, int]
"""Block and text where a row's vectors are; blocks below -1 are of an earlier output."""
Find = Callable[[list[bytes]], list[Source | None]]
"""Where the vectors of texts are already, by their hashes."""
NO_SOURCE = (-1, -1)
# Vectors of a block of chunks, where each character is a token.
BLOCK_VECTORS = 1 << 14


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """How large a block may grow, in rows and in characters of texts, titles, ids and carried columns.

    About the last `remembered` distinct texts of earlier blocks are recognised; each takes 24 bytes.
    """

    rows: int = 32_768
    chars: int = 1 << 23
    remembered: int = 1 << 20

    def for_chunks(self, chunking: Chunking | None) -> "BlockLimits":
        """Return the limits under which chunks take no more memory than whole texts, whatever their overlap."""
        if chunking is None:
            return self
        step = chunking.chunk - chunking.overlap
        return replace(self, chars=min(self.chars * step // chunking.chunk, step * BLOCK_VECTORS))


@dataclass(frozen=True, slots=True)
class Block:
    """Rows in their order, and the texts to compute for them.

    `texts` and `titles` are the block's own distinct texts, in order of appearance. `digest` is over all rows.
    """

    index: int
    rows: pa.Table
    """`BLOCK_COLUMNS`, id and carried columns: row #number of #file has the vectors of text #text of block #block, or a
    #problem."""
    texts: list[str]
    titles: list[str | None]
    text_rows: list[tuple[int, str]]
    """The number and the file of the first row of each text."""
    digest: str

    @property
    def fit_rows(self) -> int:
        """How many rows have a text."""
        return int(self.rows[PROBLEM].null_count)

    @property
    def reused_rows(self) -> int:
        """How many rows have the vectors of an earlier output."""
        return int(pc.sum(pc.less(self.rows[BLOCK], NO_SOURCE[0])).as_py() or 0)


def blocks_of(
    inputs: Inputs, limits: BlockLimits, chunking: Chunking | None, skip: bool, find: Find | None = None
) -> Iterator[tuple[Block, tuple[int, bool]]]:
    """Yield a corpus's blocks, each with the rows of all files, and whether these are known. Raises UnfitRow."""
    rows, limits = inputs.rows(exact=True), limits.for_chunks(chunking)
    for block in blocks(rows, limits, inputs.carried_fields, skip, inputs.id_type, find):
        yield block, inputs.expected()


def blocks(
    rows: Iterable[Row | BadRow],
    limits: BlockLimits,
    carried_fields: Sequence[pa.Field],
    skip: bool,
    id_type: pa.DataType | None = None,
    find: Find | None = None,
) -> Iterator[Block]:
    """Gather rows into blocks. A text is computed once in its block, and only once in all while `KnownTexts` has it.

    Texts that `find` finds are not computed.

    Without `id_type` each block's ids determine their type. Raises UnfitRow at a bad row, unless `skip`.
    """
    known = KnownTexts(limits.remembered)
    gathered: list[Row | BadRow] = []
    index = chars = 0
    for row in rows:
        if isinstance(row, Row):
            chars += _row_size(row)
        elif not skip:
            raise UnfitRow(row)
        gathered.append(row)
        if len(gathered) >= limits.rows or chars >= limits.chars:
            yield _block(index, gathered, known, [*carried_fields], id_type, find)
            gathered, chars, index = [], 0, index + 1
    if gathered:
        yield _block(index, gathered, known, [*carried_fields], id_type, find)


def _block(
    index: int,
    rows: list[Row | BadRow],
    known: "KnownTexts",
    carried_fields: list[pa.Field],
    id_type: pa.DataType | None,
    find: Find | None,
) -> Block:
    hashes = [_text_digest(row) if isinstance(row, Row) else None for row in rows]
    found = find([digest or b"" for digest in hashes]) if find else [None] * len(rows)
    own: dict[bytes, int] = {}  # the block's new texts by digest, in order
    firsts: list[Row] = []
    sources = []
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for row, digest, before in zip(rows, hashes, found, strict=True):
        source = NO_SOURCE
        if isinstance(row, BadRow) or digest is None:
            facts = repr(row)
        else:
            source = before or known.find(digest) or (index, own.setdefault(digest, len(own)))
            if len(own) > len(firsts):
                firsts.append(row)
            facts = f"{row.file} {row.number} {row.id!r} {digest.hex()}"
        sources.append(source)
        whole.update(facts.encode())
    for digest, text in own.items():
        known.remember(digest, index, text)
    carried = _carried(rows, carried_fields)
    whole.update(_content(carried))
    return Block(
        index=index,
        rows=_table(rows, sources, hashes, carried, id_type),
        texts=[row.text for row in firsts],
        titles=[row.title for row in firsts],
        text_rows=[(row.number, row.file) for row in firsts],
        digest=whole.hexdigest(),
    )


def _carried(rows: list[Row | BadRow], fields: list[pa.Field]) -> pa.Table:
    """Return the carried columns, null for a bad row; those of parquet come as arrays of one value."""
    nothing = (None,) * len(fields)
    columns = list(zip(*(row.carried if isinstance(row, Row) else nothing for row in rows), strict=True))
    arrays = []
    for values, field in zip(columns, fields, strict=True):
        if any(isinstance(value, pa.Array) for value in values):
            alone = (value if isinstance(value, pa.Array) else pa.array([value], field.type) for value in values)
            arrays.append(pa.concat_arrays(list(alone)))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=pa.schema(fields))


def _content(carried: pa.Table) -> bytes:
    """Return bytes that are equal for equal values: parquet's, as Arrow's own buffers hold noise below a null."""
    if not carried.num_columns:
        return b""
    file = io.BytesIO()
    pq.write_table(carried, file, compression="none", use_dictionary=False, write_statistics=False)
    return file.getvalue()


def _table(
    rows: list[Row | BadRow],
    sources: list[Source],
    hashes: list[bytes | None],
    carried: pa.Table,
    id_type: pa.DataType | None,
) -> pa.Table:
    problems = [None if isinstance(row, Row) else row.problem for row in rows]
    files = [row.file for row in rows]
    columns = [[row.number for row in rows], *map(list, zip(*sources, strict=True)), problems, files, hashes]
    arrays = [pa.array(values, kind) for values, kind in zip(columns, BLOCK_COLUMNS.values(), strict=True)]
    ids = [row.id if isinstance(row, Row) else None for row in rows]
    arrays.append(pa.array(ids, id_type or _type_of(ids)))
    names = [*BLOCK_COLUMNS, "id"]
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays, strict=True)]
    return pa.table([*arrays, *carried.columns], schema=pa.schema([*fields, *carried.schema]))


def _type_of(ids: list[int | str | None]) -> pa.DataType:
    """Return the type of the ids of a file without a schema: int64 unless an id is beyond it."""
    first = next((value for value in ids if value is not None), None)
    if not isinstance(first, int):
        return pa.null() if first is None else pa.string()
    return pa.uint64() if any(isinstance(value, int) and value >= 1 << 63 for value in ids) else pa.int64()


def _row_size(row: Row) -> int:
    return len(row.text) + len(row.title or "") + _size(row.id) + sum(map(_size, row.carried))


def _size(value: Any) -> int:
    """Return about how much memory an id or a carried value takes, beyond what every value takes."""
    return value.nbytes if isinstance(value, pa.Array) else len(value) if isinstance(value, str) else 0


def _text_digest(row: Row) -> bytes:
    title = "" if row.title is None else row.title
    return hashlib.blake2b(f"{len(title)}:{title}{row.text}".encode(), digest_size=DIGEST_BYTES).digest()


class KnownTexts:
    """Where each text was computed (block, text), in a table of fixed size: a new text takes its slot from another."""

    ENTRY = struct.Struct(f"{DIGEST_BYTES}sii")

    def __init__(self, slots: int) -> None:
        self._slots, self._table = slots, bytearray(self.ENTRY.size * slots)

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """Return block and text, or None for a text that is not remembered."""
        if not self._slots:
            return None
        known, block, text = self.ENTRY.unpack_from(self._table, self._offset(digest))
        return (block, text) if known == digest else None

    def remember(self, digest: bytes, block: int, text: int) -> None:
        """Remember a text, in place of the text that had its slot."""
        if self._slots:
            self.ENTRY.pack_into(self._table, self._offset(digest), digest, block, text)

    def _offset(self, digest: bytes) -> int:
        return int.from_bytes(digest[:8], "little") % self._slots * self.ENTRY.size
