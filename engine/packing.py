"""Texts as a packed batch in an int32 buffer, moved by a single copy: ids, positions, and bounds of texts and means."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.contract import Ranges, TokenIds, as_array

Buffer = TypeVar("Buffer", np.ndarray, Tensor)
Spans = Sequence[tuple[int, int]]

# In int32 numbers. Triton would compile a kernel again for an address that is not a multiple of 16 bytes.
ALIGNMENT = 4
PADDING_ID = 0


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the texts of a packed batch begin, and which tokens each vector is the mean of."""

    positions: Tensor
    """int32 [tokens]: each token's position in its own text, from 0."""
    cu_seqlens: Tensor
    """int32 [texts + 1]: where each text begins, and where the last text ends."""
    starts: Tensor
    """int32 [vectors]: the first token of each vector."""
    ends: Tensor
    """int32 [vectors]: where the tokens of each vector end."""
    longest: int
    """No text has more tokens."""
    lengths: Sequence[int] = ()
    """Tokens of each text, where the host knows them; grouped_attention needs them."""
    spans: Spans = ()
    """`starts` and `ends`, where the host knows them."""
    tiles: Tensor | None = None
    """int32 [slots, 4]: each tile's text (first token, tokens) and first row, for `qkv_attention_fused`."""


class Parts(NamedTuple, Generic[Buffer]):
    """Views of a buffer, named as in `Segments`."""

    token_ids: Buffer
    positions: Buffer
    cu_seqlens: Buffer
    starts: Buffer
    ends: Buffer


@dataclass(frozen=True, slots=True)
class Layout:
    """Room in an int32 buffer for `tokens` in `texts` of at most `longest` each, and for `vectors`."""

    tokens: int
    texts: int
    vectors: int
    longest: int

    @property
    def size(self) -> int:
        """Numbers in the buffer."""
        return sum(map(_aligned, self._sizes))

    @property
    def _sizes(self) -> tuple[int, ...]:
        return self.tokens, self.tokens, self.texts + 1, self.vectors, self.vectors

    def holds(self, other: "Layout") -> bool:
        """Whether a batch of the other layout fits. Left-over tokens need texts to belong to."""
        padding_texts = -(-(self.tokens - other.tokens) // self.longest)
        return (
            other.tokens <= self.tokens
            and other.texts + padding_texts <= self.texts
            and other.vectors <= self.vectors
            and other.longest <= self.longest
        )

    def parts(self, buffer: Buffer) -> Parts[Buffer]:
        """Return the parts of a buffer, which begin at multiples of 16 bytes."""
        starts = accumulate(map(_aligned, self._sizes), initial=0)
        return Parts(*(buffer[start : start + size] for start, size in zip(starts, self._sizes, strict=False)))

    def pack(self, token_ids: Sequence[TokenIds], ranges: Ranges | None = None, pin_memory: bool = False) -> Tensor:
        """Return a buffer on the host with these texts; see `fill`. torch reuses pinned blocks."""
        buffer = torch.empty(self.size, dtype=torch.int32, pin_memory=pin_memory)
        self.fill(buffer.numpy(), token_ids, ranges)
        return buffer

    def fill(self, buffer: np.ndarray, token_ids: Sequence[TokenIds], ranges: Ranges | None = None) -> None:
        """Overwrite all of the buffer with these texts, which must fit, and a vector for each text or range.

        Left-over tokens become more texts, of `longest` tokens each, and left-over texts and vectors have no tokens:
        nothing is masked, and no row of a real text depends on them. Raises ValueError when a text has no tokens.
        """
        lengths = [len(ids) for ids in token_ids]
        if min(lengths) < 1:
            raise ValueError("a text without tokens has no vector; the tokenizer gives each at least <bos> and <eos>")
        parts, used, texts = self.parts(buffer), sum(lengths), len(lengths)
        parts.token_ids[:used] = np.frombuffer(b"".join(map(as_array, token_ids)), np.int32)
        parts.token_ids[used:] = PADDING_ID
        cu_seqlens = parts.cu_seqlens
        cu_seqlens[0] = 0
        np.cumsum(lengths, out=cu_seqlens[1 : texts + 1])
        padding = used + self.longest * np.arange(1, self.texts - texts + 1)
        cu_seqlens[texts + 1 :] = np.minimum(padding, self.tokens)
        first_tokens = np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
        np.subtract(np.arange(self.tokens, dtype=np.int32), first_tokens, out=parts.positions)
        of_texts = cu_seqlens[:texts], cu_seqlens[1 : texts + 1]
        bounds = of_texts if ranges is None else np.array(spans_of(lengths, ranges)).T
        for part, values in zip((parts.starts, parts.ends), bounds, strict=True):
            part[: len(values)] = values
            part[len(values) :] = 0

    def segments(self, buffer: Tensor, lengths: Sequence[int] = (), spans: Spans = ()) -> tuple[Tensor, Segments]:
        """Return the token ids and the segments of a buffer, the latter with what the host knows."""
        parts = self.parts(buffer)
        positions, cu_seqlens, starts, ends = parts[1:]
        return parts.token_ids, Segments(positions, cu_seqlens, starts, ends, self.longest, lengths, spans)


def layout_of(lengths: Sequence[int], ranges: Ranges | None) -> Layout:
    """Return the layout that texts of these lengths fill exactly."""
    vectors = len(lengths) if ranges is None else sum(map(len, ranges))
    return Layout(sum(lengths), len(lengths), vectors, max(lengths))


def packed(token_ids: Sequence[TokenIds], device: torch.device) -> tuple[Tensor, Segments]:
    """Return texts as a batch on the device, for `Network`; two empty texts follow them."""
    lengths = [len(ids) for ids in token_ids]
    layout = Layout(sum(lengths), len(lengths) + 2, len(lengths) + 2, max(lengths))
    return layout.segments(layout.pack(token_ids).to(device), lengths)


def spans_of(lengths: Sequence[int], ranges: Ranges | None) -> list[tuple[int, int]]:
    """Return the tokens of each vector in the batch: those of its text, or of its range of a text."""
    bounds = list(accumulate(lengths, initial=0))
    if ranges is None:
        return list(pairwise(bounds))
    return [
        (start + first, start + last) for start, of_text in zip(bounds, ranges, strict=False) for first, last in of_text
    ]


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
