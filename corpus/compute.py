"""A block to vectors, and vectors to rows of the output: for runs, for predictions and on a cluster."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

import encoding
from corpus.blocks import BLOCK, BLOCK_COLUMNS, PROBLEM, TEXT, Block
from corpus.rows import BadRow, UnfitRow
from engine.contract import DIMENSIONS, Ranges
from engine.tokenizer import TextRefused, Tokenizer
from texts.chunking import Pass
from texts.options import Options
from texts.prepare import Prepared, gather, passes_of

# Token ids to float32 [vectors, 768] before normalisation; with ranges, a vector for each range of each text's tokens.
Embed = Callable[[Sequence[Sequence[int]], Ranges | None], np.ndarray]

# Texts tokenized at once: the tokenizer's threads share them out, and a text that it refuses stops no more than these.
TEXTS_AT_ONCE = 1024
# Vectors finished or gathered at once: with 768 float32 components 12 MiB.
VECTORS_AT_ONCE = 4096
FACTS = np.dtype([("token_count", "<i4"), ("truncated", "?"), ("prompted", "?"), ("start", "<i8"), ("end", "<i8")])
"""What is known of a vector: its tokens, whether its text was cut to the limit, whether the text began with one of the
model's prompts and got no second one, and the characters that it is of."""


@dataclass(frozen=True, slots=True)
class PreparedBlock:
    """A block's own texts as the model reads them. `refused` texts are not in `prepared`; it says why."""

    block: Block
    prepared: Prepared
    refused: dict[int, str]

    @property
    def tokens(self) -> int:
        """How many tokens the model reads."""
        return sum(map(len, self.prepared.token_ids))


@dataclass(frozen=True, slots=True)
class TextVectors:
    """The vectors of a block's own texts; those of text t are offsets[t] to offsets[t + 1]."""

    vectors: np.ndarray
    """[vectors, width], as the output has them"""
    facts: np.ndarray
    """FACTS [vectors]"""
    offsets: np.ndarray
    """int64 [texts + 1]"""
    refused: dict[int, str]
    """Texts without a vector, and why."""


@dataclass(frozen=True, slots=True)
class OutputRows:
    """Rows of the output: a table of id, token_count, truncated, prompted, ranges and carried columns; vectors [rows, width]."""

    table: pa.Table
    vectors: np.ndarray


VectorsOf = Callable[[int], TextVectors]
"""The vectors of a block's texts, by the block's index."""


def prepare_block(tokenizer: Tokenizer, options: Options, block: Block, skip: bool) -> PreparedBlock:
    """Tokenize the block's texts. Thread-safe, and mostly outside the interpreter's lock.

    Raises UnfitRow at a text that cannot be brought under the limit, unless `skip`.
    """
    passes: list[tuple[int, list[Pass]]] = []
    refused: dict[int, str] = {}
    for start in range(0, len(block.texts), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        texts, titles = block.texts[part], block.titles[part]
        try:
            passes += enumerate(passes_of(tokenizer, texts, titles, options), start)
        except TextRefused:
            for i, (text, title) in enumerate(zip(texts, titles, strict=True), start):
                try:
                    passes.append((i, passes_of(tokenizer, [text], [title], options)[0]))
                except TextRefused as error:
                    refused[i] = f"{'its prompt' if error.is_prompt else 'the text'} {error.reason}"
                    if not skip:
                        raise UnfitRow(BadRow(block.text_numbers[i], refused[i])) from None
    return PreparedBlock(block, gather(passes, options), refused)


def compute(embed: Embed, options: Options, prepared_block: PreparedBlock) -> TextVectors:
    """Return the vectors of a block's own texts, computed by an engine's `embed`."""
    prepared = prepared_block.prepared
    return finish(options, prepared_block, embed(prepared.token_ids, prepared.ranges) if prepared.passes else None)


def finish(options: Options, prepared_block: PreparedBlock, vectors: np.ndarray | None) -> TextVectors:
    """Return the vectors of a block's own texts as the output has them.

    `vectors` are the engine's, float32 [vectors, 768]; None where every text was refused or of an earlier block.
    """
    raw = np.empty((0, DIMENSIONS), dtype=np.float32) if vectors is None else vectors
    finished = np.empty((len(raw), options.width), dtype=encoding.WIRE_DTYPES[options.precision])
    for start in range(0, len(raw), VECTORS_AT_ONCE):  # the exact normalisation takes a multiple of its input
        finished[start : start + VECTORS_AT_ONCE] = options.finish(raw[start : start + VECTORS_AT_ONCE])
    prepared = prepared_block.prepared
    facts = np.empty(len(raw), dtype=FACTS)
    facts["token_count"], facts["truncated"] = prepared.token_counts, prepared.truncated
    facts["prompted"] = prepared.prompted
    facts["start"], facts["end"] = [span.start for span in prepared.spans], [span.end for span in prepared.spans]
    offsets = np.searchsorted(prepared.owners, np.arange(len(prepared_block.block.texts) + 1)).astype(np.int64)
    return TextVectors(finished, facts, offsets, prepared_block.refused)


def unfit_rows(rows: pa.Table, vectors_of: VectorsOf) -> list[BadRow]:
    """Return the block's rows that have no vector, in order."""
    refused = {int(block): vectors_of(int(block)).refused for block in np.unique(rows[BLOCK]) if block >= 0}
    unfit = []
    for number, block, text, problem in zip(*(rows[name].to_pylist() for name in BLOCK_COLUMNS), strict=True):
        if problem := problem or refused[block].get(text):
            unfit.append(BadRow(number, problem))
    return unfit


def output_rows(rows: pa.Table, vectors_of: VectorsOf, with_ranges: bool) -> Iterator[OutputRows]:
    """Yield the output of a block's rows in order, at most `VECTORS_AT_ONCE` vectors at a time.

    A row whose text was cut into chunks is there once for each; a row without a vector is not there.
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
    """Return rows, each with the vector at its position among those of its block."""
    blocks = rows[BLOCK].to_numpy()
    parts = [(vectors_of(int(block)), positions[blocks == block]) for block in np.unique(blocks)]
    row_order = np.argsort(np.argsort(blocks, kind="stable"))  # the parts come block by block
    vectors = np.concatenate([part.vectors[chosen] for part, chosen in parts])[row_order]
    facts = np.concatenate([part.facts[chosen] for part, chosen in parts])[row_order]
    table = rows.drop_columns(list(BLOCK_COLUMNS))
    for i, field in enumerate(fact_fields(with_ranges), 1):
        table = table.add_column(i, field, pa.array(np.ascontiguousarray(facts[field.name])))
    return OutputRows(table, vectors)


def fact_fields(with_ranges: bool) -> list[pa.Field]:
    """Return the output's columns for FACTS: the ranges of characters only where texts are cut into chunks."""
    names = ["token_count", "truncated", "prompted", *(("start", "end") if with_ranges else ())]
    return [pa.field(name, pa.from_numpy_dtype(FACTS[name])) for name in names]


def vector_array(vectors: np.ndarray, mask: pa.Array | None = None) -> pa.Array:
    """Return [rows, width] as fixed-size lists of its numbers, null where `mask` is true."""
    kind = pa.field("element", pa.from_numpy_dtype(vectors.dtype), nullable=False)
    flat = pa.array(vectors.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=pa.list_(kind, vectors.shape[1]), mask=mask)
