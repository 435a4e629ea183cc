"""Texts as one packed batch, in one int32 buffer that one copy moves: ids, positions, and where texts and means lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, pairwise
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from engine.contract import Ranges

Buffer = TypeVar("Buffer", np.ndarray, Tensor)
Spans = Sequence[tuple[int, int]]

# In int32 numbers. Triton would compile a kernel again for an address that is not a multiple of 16 bytes.
ALIGNMENT = 4
PADDING_ID = 0


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the texts of a packed batch lie, and of which tokens each vector is the mean."""

    positions: Tensor
    """int32 [tokens]: each token's position in its own text, from 0."""
    cu_seqlens: Tensor
    """int32 [texts + 1]: where each text begins, and where the last one ends."""
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


class Parts(NamedTuple, Generic[Buffer]):
    """Views of a buffer, named as in `Segments`."""

    token_ids: Buffer
    positions: Buffer
    cu_seqlens: Buffer
    starts: Buffer
    ends: Buffer


@dataclass(frozen=True, slots=True)
class Layout:
    """Room for so many tokens in texts of at most `longest`, and for so many vectors, in an int32 buffer."""

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
        """Whether a batch of the other layout fits. Tokens that are left over need texts to belong to."""
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

    def pack(
        self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None, pin_memory: bool = False
    ) -> Tensor:
        """Return a buffer on the host with these texts; see `fill`. torch keeps pinned blocks and reuses them."""
        buffer = torch.empty(self.size, dtype=torch.int32, pin_memory=pin_memory)
        self.fill(buffer.numpy(), token_ids, ranges)
        return buffer

    def fill(self, buffer: np.ndarray, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> None:
        """Overwrite all of the buffer with these texts, which must fit, and a vector for each text or range.

        Tokens that are left over become more texts, of `longest` tokens each, and texts that are left over have no
        tokens: nothing is masked, and no row of a real text depends on them. Vectors that are left over are of no
        token. Raises ValueError when a text has no tokens.
        """
        lengths = [len(ids) for ids in token_ids]
        if min(lengths) < 1:
            raise ValueError("a text without tokens has no vector; the tokenizer gives each at least <bos> and <eos>")
        parts, used, texts = self.parts(buffer), sum(lengths), len(lengths)
        parts.token_ids[:used] = np.fromiter(chain.from_iterable(token_ids), np.int32, used)
        parts.token_ids[used:] = PADDING_ID
        cu_seqlens = parts.cu_seqlens
        cu_seqlens[0] = 0
        np.cumsum(lengths, out=cu_seqlens[1 : texts + 1])
        padding = used + self.longest * np.arange(1, self.texts - texts + 1)
        cu_seqlens[texts + 1 :] = np.minimum(padding, self.tokens)
        parts.positions[:] = np.arange(self.tokens) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
        spans = np.array(spans_of(lengths, ranges))
        for part, bounds in zip((parts.starts, parts.ends), spans.T, strict=True):
            part[: len(bounds)] = bounds
            part[len(bounds) :] = 0

    def segments(self, buffer: Tensor, lengths: Sequence[int] = (), spans: Spans = ()) -> tuple[Tensor, Segments]:
        """Return the token ids and the segments of a buffer, and in the latter what the host knows of them."""
        parts = self.parts(buffer)
        positions, cu_seqlens, starts, ends = parts[1:]
        return parts.token_ids, Segments(positions, cu_seqlens, starts, ends, self.longest, lengths, spans)


def layout_of(lengths: Sequence[int], ranges: Ranges | None) -> Layout:
    """Return the layout that texts of these lengths fill exactly."""
    vectors = len(lengths) if ranges is None else sum(map(len, ranges))
    return Layout(sum(lengths), len(lengths), vectors, max(lengths))


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
