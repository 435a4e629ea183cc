"""Large work as a generator that yields after each piece, so its caller can do other work in between, or stop."""

from collections.abc import Generator, Iterator, Sequence
from typing import TypeVar

Result = TypeVar("Result")

Pieces = Generator[None, None, Result]

# A piece takes some 30 ms: the tokenizer reads two million characters a second on a core, and Python 100,000 texts.
PIECE_CHARS = 1 << 16
PIECE_TEXTS = 256


def pieces_of(lengths: Sequence[int]) -> Iterator[range]:
    """Yield the positions of texts in pieces: of at most PIECE_TEXTS texts and PIECE_CHARS characters, or one text."""
    first = characters = 0
    for position, length in enumerate(lengths):
        if position > first and (characters + length > PIECE_CHARS or position - first == PIECE_TEXTS):
            yield range(first, position)
            first, characters = position, 0
        characters += length
    if first < len(lengths):
        yield range(first, len(lengths))


def all_of(pieces: Pieces[Result]) -> Result:
    """Do all pieces at once and return the result."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            result: Result = done.value
            return result
