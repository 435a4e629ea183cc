"""How much a request may ask for: counted before the work is done, and again meanwhile."""

from dataclasses import dataclass

MAX_TEXTS = 2048
MAX_CHUNKS = 8192
# The tokens of the largest request that is not cut into chunks.
MAX_REQUEST_TOKENS = MAX_TEXTS * 2048


class TooManyTokens(ValueError):
    """Texts that make more tokens together than a request may have. The message does not begin with a field."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most chunks and tokens that the texts of a request may make together; None is no limit."""

    chunks: int | None = None
    tokens: int | None = None
    """What the model would read: prompts count, and overlaps as often as they are read."""

    def check_chunks(self, chunks: int) -> None:
        """Raise ValueError for more chunks than are allowed."""
        if self.chunks is not None and chunks > self.chunks:
            raise ValueError(
                f"chunk: the texts make {chunks:,} chunks; {self.chunks:,} are allowed: give fewer texts, or larger "
                "chunks"
            )

    def check_tokens(self, tokens: int, *, is_all: bool = False) -> None:
        """Raise TooManyTokens for more tokens than are allowed. `is_all` says that no more will be counted."""
        if self.tokens is not None and tokens > self.tokens:
            count = f"{tokens:,} tokens with their prompts and overlaps" if is_all else "more tokens than that"
            raise TooManyTokens(
                f"{self.tokens:,} tokens are allowed (MAX_REQUEST_TOKENS), and the texts make {count}; give fewer "
                "texts at once, or less overlap"
            )


NO_LIMITS = Limits()
