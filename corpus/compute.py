"""Before the disk: a block's texts to token ids, and these to vectors."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

import encoding
from corpus.blocks import Block
from corpus.rows import BadRow, UnfitRow
from engine.contract import DIMENSIONS, Ranges, TokenIds
from engine.tokenizer import TextRefused, Tokenizer
from texts.chunking import Pass
from texts.limits import NO_LIMITS, Limits, TooManyTokens
from texts.options import Options
from texts.prepare import Prepared, gather, passes_of

Embed = Callable[[Sequence[TokenIds], Ranges | None], np.ndarray]
"""Token ids to float32 [vectors, 768] before normalisation; with ranges, a vector for each range of each text."""

# Texts tokenized at once: the tokenizer's threads share them, and a refused text delays at most these.
TEXTS_AT_ONCE = 1024
# Tokens that the model may read of one text in chunks, tokens in two chunks counted twice: 16 MB.
TEXT_TOKENS = 1 << 22
# Vectors finished or gathered at once: with 768 float32 components 12 MiB.
VECTORS_AT_ONCE = 4096
FACTS = pa.schema(
    {"token_count": pa.int32(), "truncated": pa.bool_(), "prompted": pa.bool_(), "start": pa.int64(), "end": pa.int64()}
)
"""The facts of a vector: its tokens, whether its text was cut to the limit, whether the text began with one of the
model's prompts and got no second one, and its range of characters."""


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
    facts: pa.Table
    """FACTS of each vector"""
    offsets: np.ndarray
    """int64 [texts + 1]"""
    refused: dict[int, str]
    """Texts without a vector, and why."""


def prepare_block(tokenizer: Tokenizer, options: Options, block: Block, skip: bool) -> PreparedBlock:
    """Tokenize the block's texts. Thread-safe, and mostly outside the interpreter's lock.

    Raises UnfitRow at a text that cannot be brought under the limit, unless `skip`.
    """
    passes: list[tuple[int, list[Pass]]] = []
    refused: dict[int, str] = {}
    for start in range(0, len(block.texts), TEXTS_AT_ONCE):
        part = slice(start, start + TEXTS_AT_ONCE)
        for i, each in enumerate(_passes(tokenizer, options, block.texts[part], block.titles[part]), start):
            if not isinstance(each, str):
                passes.append((i, each))
            elif skip:
                refused[i] = each
            else:
                number, file = block.text_rows[i]
                raise UnfitRow(BadRow(number, each, file))
    return PreparedBlock(block, gather(passes, options), refused)


def _passes(
    tokenizer: Tokenizer, options: Options, texts: list[str], titles: list[str | None]
) -> Iterable[list[Pass] | str]:
    """Return the passes of each text, or why it has none."""
    limits = Limits(tokens=TEXT_TOKENS) if options.chunking else NO_LIMITS
    try:
        return passes_of(tokenizer, texts, titles, options, limits)
    except ValueError as error:
        if len(texts) > 1:  # one of them is refused, or together they are too much: try each alone
            pairs = zip(texts, titles, strict=True)
            return (each for text, title in pairs for each in _passes(tokenizer, options, [text], [title]))
        if isinstance(error, TextRefused):
            return [f"{'its prompt' if error.is_prompt else 'the text'} {error.reason}"]
        if isinstance(error, TooManyTokens):
            return [
                f"the text makes more than {TEXT_TOKENS:,} tokens with the overlaps of its chunks; divide it, or make "
                "chunk larger or overlap smaller"
            ]
        raise


def compute(embed: Embed, options: Options, prepared_block: PreparedBlock) -> TextVectors:
    """Return the vectors of a block's own texts, computed by an engine's `embed`."""
    return finish(options, prepared_block, raw_vectors(embed, prepared_block))


def raw_vectors(embed: Embed, prepared_block: PreparedBlock) -> np.ndarray | None:
    """Return the engine's vectors of a block's own texts; None if it has none to compute."""
    prepared = prepared_block.prepared
    return embed(prepared.token_ids, prepared.ranges) if prepared.passes else None


def finish(options: Options, prepared_block: PreparedBlock, vectors: np.ndarray | None) -> TextVectors:
    """Return the vectors of a block's own texts as the output has them.

    `vectors` are the engine's, float32 [vectors, 768]; None if every text was refused or is in an earlier block.
    """
    raw = np.empty((0, DIMENSIONS), dtype=np.float32) if vectors is None else vectors
    finished = np.empty((len(raw), options.width), dtype=encoding.WIRE_DTYPES[options.precision])
    for start in range(0, len(raw), VECTORS_AT_ONCE):  # exact normalisation takes a multiple of its input
        finished[start : start + VECTORS_AT_ONCE] = options.finish(raw[start : start + VECTORS_AT_ONCE])
    prepared = prepared_block.prepared
    ranges = ([span.start for span in prepared.spans], [span.end for span in prepared.spans])
    facts = pa.table([prepared.token_counts, prepared.truncated, prepared.prompted, *ranges], schema=FACTS)
    offsets = np.searchsorted(prepared.owners, np.arange(len(prepared_block.block.texts) + 1)).astype(np.int64)
    return TextVectors(finished, facts, offsets, prepared_block.refused)
