"""From many requests to vectors: a coroutine for each request, and one thread that computes their batches.

There is no timer. Whatever waits when the device is free becomes the next batch; an idle device starts at once.
"""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np

from batching.admission import Claim
from batching.pools import TEXTS, run
from batching.queue import Queue
from batching.request import Batch, Cost, Request, batch_ranges
from batching.stats import Totals
from engine.contract import Engine, Ranges, TokenIds

logger = logging.getLogger(__name__)

# Seconds after which a thread that waits for the interpreter's lock gets it. A short text needs it some ten times: with
# Python's default of 5 ms and two other busy threads that takes 100 ms, and a pass of hundreds of launches on a GPU
# takes a hundred times as long (docs/decisions.md).
SWITCH_S = 1e-3
FROM_CACHE = Cost(queue_ms=0.0, compute_ms=0.0, batch_size=0, cache_hits=1)


class Batcher:
    """Computes the texts of all requests, in batches of like length, on one thread that owns the engine."""

    def __init__(self, engine: Engine, max_waiting_tokens: int, cache_bytes: int) -> None:
        """Start the thread. A single request is never refused; with `cache_bytes` of 0 nothing is cached."""
        sys.setswitchinterval(SWITCH_S)
        self._engine = engine
        self._queue = Queue(max_waiting_tokens, cache_bytes, lambda: engine.batch_tokens)
        self._computing_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def claim(self, tokens: int) -> AbstractContextManager[Claim]:
        """Claim about `tokens` of what may wait, for a request whose texts are not tokenized yet.

        Raises Busy, so nothing is tokenized in vain, and EngineStopped. A small request claims nothing yet.
        """
        return self._queue.claim(tokens)

    async def embed(
        self, token_ids: Sequence[TokenIds], ranges: Ranges | None = None, claim: Claim | None = None
    ) -> tuple[np.ndarray, Cost]:
        """Return float32 [n, 768] before the final normalisation, in the order of the texts, and what they cost.

        A row for each text, or with `ranges` for each range of each text's tokens; see `Engine.embed`. They are not to
        be written to. `claim` is the request's earlier claim.
        Raises Busy when too much is waiting, EngineFailed with the cause when the engine cannot compute one of the
        texts, EngineStopped when the engine's thread has died or the batcher was closed. On cancellation, texts
        that only this request waits for are not computed.
        """
        if len(token_ids) == 1 and ranges is None and (vectors := self._queue.cached(token_ids[0])) is not None:
            return vectors, FROM_CACHE
        return await self._answer(Request(token_ids, ranges, claim=claim))

    async def embed_afresh(self, token_ids: TokenIds) -> np.ndarray:
        """Return a text's float32 [768], always computed: never taken from the cache, never refused as busy."""
        vectors, _ = await self._answer(Request([token_ids], afresh=True))
        return vectors[0]

    async def _answer(self, request: Request) -> tuple[np.ndarray, Cost]:
        try:
            await run(TEXTS, len(request.token_ids), self._queue.admit, request)
            cost = await request.answer()
            return request.vectors, cost
        finally:
            self._queue.withdraw(request)

    def count(self, truncated: int, prompted: int) -> None:
        """Count texts that were cut to the limit, and those that began with their prompt, for `totals`."""
        if truncated or prompted:
            self._queue.count(truncated, prompted)

    def totals(self) -> Totals:
        """Return what was requested and computed since the start."""
        return self._queue.totals()

    def waiting_tokens(self) -> int:
        """Return how many tokens wait for their batch."""
        return self._queue.waiting_tokens()

    def stuck_s(self) -> float:
        """Return the seconds since the last batch was launched; 0.0 when the engine is idle."""
        since = self._computing_since
        return 0.0 if since is None else time.monotonic() - since

    def close(self) -> None:
        """Stop the thread and wait until it has ended, which takes as long as the batch under way.

        Requests that wait raise EngineStopped, and so do later ones. Any thread may call this, any number of times.
        """
        self._queue.stop("the engine was closed and computes nothing more; load it again")
        self._thread.join()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # an engine's Exception fails single texts; anything else ends the thread
            logger.critical("the engine's thread has ended: %r", error, exc_info=True)
            self._queue.stop(f"the engine's thread has ended ({error!r}); start the server again")
        finally:
            self._computing_since = None

    def _work(self) -> None:
        launched: deque[tuple[Batch, Callable[[], np.ndarray] | Exception]] = deque()
        # A batch is launched behind another only when it is full: until then other texts may join it.
        while (batch := self._queue.next_batch(full=bool(launched))) is not None:
            if batch:
                launched.append((batch, self._launch(batch)))
            if launched and (not batch or len(launched) == self._engine.batches_in_flight):
                self._collect(*launched.popleft())
                if not launched:
                    self._computing_since = None
            if line := self._queue.stats_line():
                logger.info(line)
        while launched:  # closed: the thread ends when the device is idle
            self._collect(*launched.popleft())

    def _launch(self, batch: Batch) -> Callable[[], np.ndarray] | Exception:
        """Return the function that waits for the batch's vectors, or what launching the batch raised."""
        self._computing_since = time.monotonic()
        try:
            return self._engine.launch([job.token_ids for job in batch], batch_ranges(batch))
        except Exception as error:
            return error

    def _collect(self, batch: Batch, wait: Callable[[], np.ndarray] | Exception) -> None:
        """Hand out the batch's vectors. A batch that fails is halved and tried again, down to single texts."""
        try:
            if isinstance(wait, Exception):
                raise wait
            vectors = wait()
        except Exception as error:
            if len(batch) == 1:
                logger.warning("a text of %d tokens failed: %r", len(batch[0].token_ids), error)
                self._queue.fail(batch[0], f"{type(error).__name__}: {error}")
                return
            logger.warning("a batch of %d texts failed and is halved: %r", len(batch), error)
            for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
                self._collect(half, self._launch(half))
        else:
            self._queue.deliver(batch, vectors)
