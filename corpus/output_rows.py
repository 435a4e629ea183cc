"""After the disk: stored vectors to the rows of the output."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpus.blocks import BLOCK, BLOCK_COLUMNS, FILE, HASH, NUMBER, PROBLEM, TEXT
from corpus.compute import FACTS, VECTORS_AT_ONCE, TextVectors
from corpus.rows import TEXT_HASH, BadRow

VectorsOf = Callable[[int], TextVectors]
"""The vectors of a block's texts, by the block's index; below -1 it is a part of an earlier output."""


@dataclass(frozen=True, slots=True)
class OutputRows:
    """Rows of the output: id, FACTS (ranges only with chunks), carried columns and hash; vectors [rows, width]."""

    table: pa.Table
    vectors: np.ndarray


def unfit_rows(rows: pa.Table, vectors_of: VectorsOf) -> list[BadRow]:
    """Return the block's rows that have no vector, in order."""
    refused = {int(block): vectors_of(int(block)).refused for block in np.unique(rows[BLOCK]) if block >= 0}
    if not any(refused.values()):
        rows = rows.filter(pc.is_valid(rows[PROBLEM]))
    unfit = []
    columns = (rows[name].to_pylist() for name in (NUMBER, BLOCK, TEXT, PROBLEM, FILE))
    for number, block, text, problem, file in zip(*columns, strict=True):
        if problem := problem or refused.get(block, {}).get(text):
            unfit.append(BadRow(number, problem, file))
    return unfit


def output_rows(rows: pa.Table, vectors_of: VectorsOf, with_ranges: bool) -> Iterator[OutputRows]:
    """Yield the output of a block's rows in order, at most `VECTORS_AT_ONCE` vectors at a time.

    A row whose text was cut into chunks appears once for each chunk; a row without a vector does not appear.
    """
    rows = rows.filter(rows[PROBLEM].is_null())
    blocks, texts = rows[BLOCK].to_numpy(), rows[TEXT].to_numpy()
    firsts, counts = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=np.int64)
    for block in np.unique(blocks):
        chosen, offsets = blocks == block, vectors_of(int(block)).offsets
        firsts[chosen] = offsets[texts[chosen]]
        counts[chosen] = offsets[texts[chosen] + 1] - firsts[chosen]
    row_of = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(len(row_of)) + np.repeat(firsts - (counts.cumsum() - counts), counts)
    for start in range(0, len(row_of), VECTORS_AT_ONCE):
        part = slice(start, start + VECTORS_AT_ONCE)
        yield _output_rows(rows.take(pa.array(row_of[part])), vectors_of, positions[part], with_ranges)


def _output_rows(rows: pa.Table, vectors_of: VectorsOf, positions: np.ndarray, with_ranges: bool) -> OutputRows:
    """Return rows, each with the vector at its position in its block."""
    blocks = rows[BLOCK].to_numpy()
    parts = [(vectors_of(int(block)), positions[blocks == block]) for block in np.unique(blocks)]
    row_order = np.argsort(np.argsort(blocks, kind="stable"))  # the parts come block by block
    vectors = np.concatenate([part.vectors[chosen] for part, chosen in parts])[row_order]
    fields = fact_fields(with_ranges)
    names = [field.name for field in fields]
    facts = pa.concat_tables([part.facts.select(names).take(pa.array(chosen)) for part, chosen in parts])
    facts = facts.take(pa.array(row_order))
    table = rows.drop_columns(list(BLOCK_COLUMNS))
    for i, field in enumerate(fields, 1):
        table = table.add_column(i, field, facts[field.name])
    table = table.append_column(pa.field(TEXT_HASH, rows.schema.field(HASH).type), rows[HASH])
    return OutputRows(table, vectors)


def fact_fields(with_ranges: bool) -> list[pa.Field]:
    """Return the output's columns for FACTS; ranges of characters only where texts are cut into chunks."""
    return [field for field in FACTS if with_ranges or field.name not in ("start", "end")]


def vector_array(vectors: np.ndarray, mask: pa.Array | None = None) -> pa.Array:
    """Return [rows, width] as fixed-size lists of its numbers, null where `mask` is true."""
    kind = pa.field("element", pa.from_numpy_dtype(vectors.dtype), nullable=False)
    flat = pa.array(vectors.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(kind, vectors.shape[1]), mask=mask)


def vectors_of(lists: pa.ChunkedArray) -> np.ndarray:
    """Return fixed-size lists of numbers, also null ones, as [rows, width]; where they lie, if in one piece."""
    width, kind = lists.type.list_size, lists.type.value_type.to_pandas_dtype()
    pieces = [np.asarray(piece.values).reshape(-1, width)[piece.offset :][: len(piece)] for piece in lists.chunks]
    return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty((0, width), kind), *pieces])
