"""Texts as one packed batch: token ids, positions and where each text begins, in one buffer that one copy moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Buffer = TypeVar("Buffer", np.ndarray, Tensor)

# In int32 numbers. Triton would compile a kernel again for an address that is not a multiple of 16 bytes.
ALIGNMENT = 4
PADDING_ID = 0


@dataclass(frozen=True, slots=True)
class Segments:
    """Where the texts of a packed batch lie."""

    cu_seqlens: Tensor
    """int32 [texts + 1]: where each text begins, and where the last one ends."""
    positions: Tensor
    """int32 [tokens]: each token's position in its own text, from 0."""
    longest: int
    """No text has more tokens."""
    lengths: tuple[int, ...] = ()
    """Tokens of each text, where the host knows them; grouped_attention needs them."""
    pooled: tuple[slice, ...] | None = None
    """The tokens of each vector, where vectors are of ranges rather than of texts."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Room for `tokens` and `texts` in an int32 buffer: token ids, then positions, then cu_seqlens."""

    tokens: int
    texts: int

    @property
    def size(self) -> int:
        """Numbers in the buffer."""
        return 2 * self._part + self.texts + 1

    @property
    def _part(self) -> int:
        return -(-self.tokens // ALIGNMENT) * ALIGNMENT

    def holds(self, tokens: int, texts: int) -> bool:
        """Whether so much fits. Tokens that are left over need a text to belong to."""
        return texts + (tokens < self.tokens) <= self.texts and tokens <= self.tokens

    def parts(self, buffer: Buffer) -> tuple[Buffer, Buffer, Buffer]:
        """Return views of token ids [tokens], positions [tokens] and cu_seqlens [texts + 1]."""
        part = self._part
        return buffer[: self.tokens], buffer[part : part + self.tokens], buffer[2 * part : self.size]

    def pack(self, token_ids: Sequence[Sequence[int]], pin_memory: bool = False) -> Tensor:
        """Return a buffer on the host with these texts; see `fill`. torch keeps pinned blocks and reuses them."""
        buffer = torch.empty(self.size, dtype=torch.int32, pin_memory=pin_memory)
        self.fill(buffer.numpy(), token_ids)
        return buffer

    def fill(self, buffer: np.ndarray, token_ids: Sequence[Sequence[int]]) -> None:
        """Overwrite all of the buffer with these texts, which must fit.

        Tokens that are left over become one more text, and texts that are left over have no tokens: nothing is masked,
        and no row of a real text depends on them. Raises ValueError when a text has no tokens.
        """
        lengths = [len(ids) for ids in token_ids]
        if min(lengths) < 1:
            raise ValueError("a text without tokens has no vector; the tokenizer gives each at least <bos> and <eos>")
        ids, positions, cu_seqlens = self.parts(buffer)
        used = sum(lengths)
        ids[:used] = np.fromiter(chain.from_iterable(token_ids), np.int32, used)
        ids[used:] = PADDING_ID
        cu_seqlens[0] = 0
        np.cumsum(lengths, out=cu_seqlens[1 : len(lengths) + 1])
        cu_seqlens[len(lengths) + 1 :] = self.tokens
        positions[:] = np.arange(self.tokens) - np.repeat(cu_seqlens[:-1], np.diff(cu_seqlens))
