"""A limit on the large predictions that Cog's server computes at once, so that small ones always find a free slot."""

import asyncio

from container.refusal import Refusal

MOST_WAITING = 256
WAIT_TIMEOUT_S = 60.0
BUSY = "busy: as many large predictions are computed as may be at a time; try again in a moment"


class Gate:
    """Lets large predictions in, in the order in which they came."""

    def __init__(self, places: int) -> None:
        self.places = asyncio.Semaphore(max(1, places))
        self._waiting = 0

    async def enter(self) -> None:
        """Wait for a place. Raises Refusal when too many wait, or when the wait has been too long."""
        if self._waiting >= MOST_WAITING:
            raise Refusal(429, BUSY)
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_TIMEOUT_S):
                await self.places.acquire()
        except TimeoutError:
            raise Refusal(429, BUSY) from None
        finally:
            self._waiting -= 1

    def leave(self) -> None:
        """Give the place to the next prediction."""
        self.places.release()
