"""Blocks of rows: what is computed and stored at once, with exact duplicates found.

Blocks depend on nothing but the rows and the limits. Read again, a corpus gives the same blocks, which lets an
interrupted run go on and end with the same bytes.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from corpus.rows import BadRow, Row, UnfitRow

DIGEST_BYTES = 16
# Columns of a block's rows beside `id` and the carried ones, under names that no carried column has.
NUMBER, BLOCK, TEXT, PROBLEM = "#number", "#block", "#text", "#problem"
BLOCK_COLUMNS = {NUMBER: pa.int64(), BLOCK: pa.int32(), TEXT: pa.int32(), PROBLEM: pa.string()}
NO_SOURCE = (-1, -1)


@dataclass(frozen=True, slots=True)
class BlockLimits:
    """How large a block may grow, in rows and in characters of texts and carried columns.

    `remembered` is about how many distinct texts of earlier blocks are known again; each takes 24 bytes.
    """

    rows: int = 32_768
    chars: int = 1 << 25
    remembered: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Block:
    """Rows in their order, and the texts that are to be computed for them.

    `texts` and `titles` are the block's own distinct texts, in the order in which they came. `digest` is over all rows.
    """

    index: int
    rows: pa.Table
    """`BLOCK_COLUMNS`, id and carried columns: a row has the vectors of text #text of block #block, or a #problem."""
    texts: list[str]
    titles: list[str | None]
    text_numbers: list[int]
    """The number of the first row of each text."""
    digest: str

    @property
    def fit_rows(self) -> int:
        """How many rows have a text."""
        return int(self.rows[PROBLEM].null_count)


def blocks(
    rows: Iterable[Row | BadRow], limits: BlockLimits, carried_fields: Sequence[pa.Field], skip: bool
) -> Iterator[Block]:
    """Gather rows into blocks. A text is computed once in its block, and once in all where `KnownTexts` has it.

    Raises UnfitRow at a bad row, unless `skip`.
    """
    known = KnownTexts(limits.remembered)
    gathered: list[Row | BadRow] = []
    index = chars = 0
    for row in rows:
        if isinstance(row, Row):
            chars += len(row.text) + sum(len(value) for value in row.carried if isinstance(value, (str, bytes)))
        elif not skip:
            raise UnfitRow(row)
        gathered.append(row)
        if len(gathered) >= limits.rows or chars >= limits.chars:
            yield _block(index, gathered, known, carried_fields)
            gathered, chars, index = [], 0, index + 1
    if gathered:
        yield _block(index, gathered, known, carried_fields)


def _block(index: int, rows: list[Row | BadRow], known: "KnownTexts", carried_fields: Sequence[pa.Field]) -> Block:
    own: dict[bytes, int] = {}  # the block's new texts by digest, in order
    firsts: list[Row] = []
    sources = []
    whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for row in rows:
        source, facts = NO_SOURCE, repr(row)
        if isinstance(row, Row):
            digest = _text_digest(row)
            source = known.find(digest) or (index, own.setdefault(digest, len(own)))
            if len(own) > len(firsts):
                firsts.append(row)
            facts = f"{row.number} {row.id!r} {row.carried!r} {digest.hex()}"
        sources.append(source)
        whole.update(facts.encode())
    for digest, text in own.items():
        known.remember(digest, index, text)
    return Block(
        index=index,
        rows=_table(rows, sources, carried_fields),
        texts=[row.text for row in firsts],
        titles=[row.title for row in firsts],
        text_numbers=[row.number for row in firsts],
        digest=whole.hexdigest(),
    )


def _table(rows: list[Row | BadRow], sources: list[tuple[int, int]], carried_fields: Sequence[pa.Field]) -> pa.Table:
    nothing = (None,) * len(carried_fields)
    ids = pa.array([row.id if isinstance(row, Row) else None for row in rows])
    problems = [None if isinstance(row, Row) else row.problem for row in rows]
    columns = [[row.number for row in rows], *map(list, zip(*sources, strict=True)), problems]
    columns += map(list, zip(*(row.carried if isinstance(row, Row) else nothing for row in rows), strict=True))
    fields = [*(pa.field(*column) for column in BLOCK_COLUMNS.items()), *carried_fields]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, fields, strict=True)]
    fields.insert(len(BLOCK_COLUMNS), pa.field("id", ids.type))
    arrays.insert(len(BLOCK_COLUMNS), ids)
    return pa.table(arrays, schema=pa.schema(fields))


def _text_digest(row: Row) -> bytes:
    title = "" if row.title is None else row.title
    return hashlib.blake2b(f"{len(title)}:{title}{row.text}".encode(), digest_size=DIGEST_BYTES).digest()


class KnownTexts:
    """Block and text at which a text was computed, in a table of fixed size: a text takes its slot from another."""

    ENTRY = struct.Struct(f"{DIGEST_BYTES}sii")

    def __init__(self, slots: int) -> None:
        self._slots, self._table = slots, bytearray(self.ENTRY.size * slots)

    def find(self, digest: bytes) -> tuple[int, int] | None:
        """Return block and text, or None where the text is not remembered."""
        if not self._slots:
            return None
        known, block, text = self.ENTRY.unpack_from(self._table, self._offset(digest))
        return (block, text) if known == digest else None

    def remember(self, digest: bytes, block: int, text: int) -> None:
        """Remember a text, in the place of the one that had its slot."""
        if self._slots:
            self.ENTRY.pack_into(self._table, self._offset(digest), digest, block, text)

    def _offset(self, digest: bytes) -> int:
        return int.from_bytes(digest[:8], "little") % self._slots * self.ENTRY.size
