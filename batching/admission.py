"""How much work may wait. The measure is how long others would wait, not how much a single request has queued."""

from dataclasses import dataclass

from batching.errors import Busy

# A request claims at most this part of the limit, so a large request does not use it up alone.
SHARES = 16
# A request of more than this part of a share is large. Large requests may claim three quarters of the limit, which
# leaves room for small ones.
SMALL_PARTS = 8


@dataclass(eq=False, slots=True)
class Claim:
    """How much of the limit a request holds, in tokens."""

    tokens: int = 0


class Admission:
    """The tokens that all requests under way claim together, and their limit."""

    def __init__(self, limit: int, batch_tokens: int) -> None:
        """`limit` is in tokens. A share of it is at least `batch_tokens`, the tokens of a batch."""
        self._limit = limit
        self._share = max(limit // SHARES, batch_tokens)
        self._claimed = 0
        self.small_tokens = max(self._share // SMALL_PARTS, 1)
        """The most tokens of a request that is not large."""

    def claim(self, claim: Claim, tokens: int) -> None:
        """Let a request claim its `tokens`, instead of what it claimed before.

        Raises Busy, and changes nothing, where these and the claims of others exceed the limit. A request that needs no
        more than it has is never refused, nor is one while no other claims anything.
        """
        others, wanted = self._claimed - claim.tokens, min(tokens, self._share)
        limit = self._limit if tokens <= self.small_tokens else self._limit * 3 // 4
        if others and wanted > claim.tokens and others + wanted > limit:
            large = "" if limit == self._limit else f" for requests of more than {self.small_tokens:,} tokens"
            raise Busy(
                f"busy: requests under way have {others:,} tokens and this one has {tokens:,}, beyond the limit of "
                f"{limit:,}{large} (MAX_WAITING_TOKENS); try again in a moment"
            )
        self._claimed += wanted - claim.tokens
        claim.tokens = wanted

    def release(self, claim: Claim) -> None:
        """Give back what a request claims."""
        self._claimed -= claim.tokens
        claim.tokens = 0
