"""Whether the server still gives the vectors that it gave when it started."""

import asyncio
import logging
import time
from collections.abc import Sequence

import numpy as np

from batching.batcher import Batcher
from batching.errors import EngineFailed, EngineStopped

logger = logging.getLogger(__name__)

# Cog waits five seconds for a health check; whoever polls more often than this gets the last answer.
PATIENCE_S = 4.0
EVERY_S = 5.0
# No batch takes this long, not the longest on the slowest CPU.
HANG_S = 60.0


class Health:
    """Embeds a canary text now and then and compares it with its vector at setup."""

    def __init__(self, batcher: Batcher, token_ids: Sequence[int], vector: np.ndarray, allowed: float) -> None:
        """`vector` is the canary's float32 [768]; a relative error of `allowed` is the engine's own rounding."""
        self._batcher = batcher
        self._token_ids = token_ids
        self._vector = vector
        self._allowed = allowed
        self._checked = -EVERY_S
        self._problem: str | None = None

    async def check(self) -> bool:
        """Return whether the engine's thread lives, no batch hangs and the canary's vector is what it was."""
        if time.monotonic() - self._checked >= EVERY_S:
            self._checked = time.monotonic()
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
            return None  # a long queue is load, not illness; a batch that hangs is found above
        except (EngineStopped, EngineFailed) as error:
            return str(error)
        off = float(np.linalg.norm(vector - self._vector) / np.linalg.norm(self._vector))
        if not off <= self._allowed:  # NaN is not
            return f"the canary's vector is {off:.1e} off what it was at setup; {self._allowed:.1e} is allowed"
        return None
