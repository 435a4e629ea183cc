"""Whether the server still computes the vectors that it computed at its start."""

import asyncio
import logging
import time

import numpy as np

from batching.batcher import Batcher
from batching.errors import EngineFailed, EngineStopped
from engine.contract import TokenIds

logger = logging.getLogger(__name__)

# Cog waits five seconds for a health check.
PATIENCE_S = 4.0
# A check after less time returns the last answer.
EVERY_S = 5.0
# No batch takes this long, not even the longest on the slowest CPU.
HANG_S = 60.0


class Health:
    """Embeds a canary text now and then, and compares its vector with that of the setup."""

    def __init__(self, batcher: Batcher, token_ids: TokenIds, vector: np.ndarray, allowed: float) -> None:
        """`vector` is the canary's float32 [768]; `allowed` is the largest relative error that rounding explains."""
        self._batcher = batcher
        self._token_ids = token_ids
        self._vector = vector
        self._allowed = allowed
        self._checked_at = -EVERY_S
        self._problem: str | None = None

    async def check(self) -> bool:
        """Return whether the engine's thread lives, no batch hangs, and the canary's vector has not changed."""
        if time.monotonic() - self._checked_at >= EVERY_S:
            self._checked_at = time.monotonic()
            problem = await self._find_problem()
            if problem != self._problem:
                logger.error("unhealthy: %s", problem) if problem else logger.warning("healthy again")
            self._problem = problem
        return self._problem is None

    async def _find_problem(self) -> str | None:
        stuck_s = self._batcher.stuck_s()
        if stuck_s > HANG_S:
            return f"a batch has been computing for {stuck_s:.0f} s"
        try:
            vector = await asyncio.wait_for(self._batcher.embed_afresh(self._token_ids), PATIENCE_S)
        except TimeoutError:
            return None  # a long queue is load, not a fault; a batch that hangs was found above
        except (EngineStopped, EngineFailed) as failure:
            return str(failure)
        error = float(np.linalg.norm(vector - self._vector) / np.linalg.norm(self._vector))
        if not error <= self._allowed:  # `not` and `<=` so that NaN is a problem, too
            return f"the canary's vector is {error:.1e} off what it was at setup; {self._allowed:.1e} is allowed"
        return None
