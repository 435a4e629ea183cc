"""Many requests, one forward pass: the queue between predictions and the engine.

There is no timer. Whatever waits when the device is free makes the next batch; an idle device starts at once.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from batching.queue import Batch, Queue, ranges_of
from batching.request import Cost, Request
from engine.contract import Engine, Ranges

logger = logging.getLogger(__name__)

# Admitting a text takes some microseconds: a request of more than these many is admitted beside the event loop.
ADMIT_ON_LOOP = 64


class Batcher:
    """Texts of all requests to vectors, in batches of like length, on one thread that owns the engine."""

    def __init__(self, engine: Engine, max_waiting_tokens: int, cache_bytes: int) -> None:
        """Start the thread. A request is never refused when nothing waits; `cache_bytes` of 0 keeps no results."""
        self._engine = engine
        self._queue = Queue(max_waiting_tokens, cache_bytes, lambda: engine.batch_tokens)
        self._computing_since: float | None = None
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    async def embed(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> tuple[np.ndarray, Cost]:
        """Return float32 [n, 768] before the final normalisation, in the order of the texts, and what they cost.

        A row for each text, or with `ranges` for each range of each text's tokens; see `Engine.embed`.
        Raises Busy when too much is waiting, EngineFailed with the cause when the engine cannot compute one of the
        texts, EngineStopped. When it is cancelled, what only this request waits for is not computed.
        """
        request = Request(len(token_ids), asyncio.get_running_loop(), ranges)
        try:
            if len(token_ids) > ADMIT_ON_LOOP:
                await asyncio.to_thread(self._queue.admit, request, token_ids, ranges)
            else:
                self._queue.admit(request, token_ids, ranges)
            cost = await request.cost
            return request.vectors, cost
        finally:
            self._queue.leave(request)

    async def embed_afresh(self, token_ids: Sequence[int]) -> np.ndarray:
        """Return one text's float32 [768], computed for certain: not from the cache, not refused as busy."""
        request = Request(1, asyncio.get_running_loop())
        try:
            self._queue.admit_afresh(request, token_ids)
            await request.cost
            return request.vectors[0]
        finally:
            self._queue.leave(request)

    def stuck_s(self) -> float:
        """Return for how many seconds the engine has been computing without an end in sight; 0.0 when it is idle."""
        since = self._computing_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # an engine's Exception fails its texts alone; this is the thread's end
            logger.critical("the engine's thread has ended", exc_info=True)
            self._queue.stop(error)

    def _work(self) -> None:
        launched: deque[tuple[Batch, Callable[[], np.ndarray]]] = deque()
        while True:
            if line := self._queue.minute_line():
                logger.info(line)
            # A batch is launched behind another only when it is full: the texts of others may yet come to fill it.
            batch = self._queue.next_batch(full=bool(launched))
            if batch:
                launched.append((batch, self._launch(batch)))
            if launched and (not batch or len(launched) == self._engine.batches_in_flight):
                self._collect(*launched.popleft())
                if not launched:
                    self._computing_since = None

    def _launch(self, batch: Batch) -> Callable[[], np.ndarray]:
        """Return what waits for the batch's vectors, and raises what launching it raised."""
        self._computing_since = time.monotonic()
        try:
            return self._engine.launch([job.token_ids for job in batch], ranges_of(batch))
        except Exception as error:
            return _raising(error)

    def _collect(self, batch: Batch, wait: Callable[[], np.ndarray]) -> None:
        """Hand out the batch's vectors. A batch that fails is halved and tried again, so that one text fails alone."""
        try:
            vectors = wait()
        except Exception as error:
            if len(batch) == 1:
                logger.warning("a text of %d tokens failed: %r", len(batch[0].token_ids), error)
                self._queue.fail(batch[0], error)
                return
            logger.warning("a batch of %d texts failed and is halved: %r", len(batch), error)
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._collect(half, self._launch(half))
            return
        self._queue.deliver(batch, vectors)


def _raising(error: Exception) -> Callable[[], np.ndarray]:
    def wait() -> np.ndarray:
        raise error

    return wait
