"""Many clients at once, as the server's batcher serves them: single texts, alone and beside a request of many."""

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.gpu_engines import Texts, load, make_texts, mixed_texts
from benchmarks.gpu_parts import Step

if TYPE_CHECKING:
    from batching.batcher import Batcher

MOST_WAITING_TOKENS = 100_000_000
SHORT = 16  # tokens


async def serve(batcher: "Batcher", singles: Texts, bulk: Texts | None, seconds: float) -> dict[str, float]:
    """Return the figures of clients that each ask for one text over and over, beside one that asks for the bulk."""
    taken_s: list[float] = []
    bulk_s: list[float] = []
    done = asyncio.Event()

    async def ask(text: int) -> None:
        while not done.is_set():
            start = time.perf_counter()
            await batcher.embed([singles.token_ids[text]])
            taken_s.append(time.perf_counter() - start)

    async def ask_for_bulk(texts: Texts) -> None:
        while sum(bulk_s) < seconds:
            start = time.perf_counter()
            await batcher.embed(texts.token_ids)
            bulk_s.append(time.perf_counter() - start)

    start = time.perf_counter()
    clients = [asyncio.create_task(ask(text)) for text in range(len(singles.texts))]
    try:
        await (ask_for_bulk(bulk) if bulk else asyncio.sleep(seconds))
    finally:
        done.set()
        await asyncio.gather(*clients)
    wall_s = time.perf_counter() - start
    tokens = len(taken_s) * SHORT + (len(bulk_s) * bulk.tokens if bulk else 0)
    p50, p99 = np.percentile(taken_s, [50, 99]).tolist()
    figures = {
        "requests/s": len(taken_s) / wall_s,
        "p50 ms": p50 * 1e3,
        "p99 ms": p99 * 1e3,
        "tokens/s": tokens / wall_s,
    }
    return figures | ({"bulk request ms": sum(bulk_s) / len(bulk_s) * 1e3} if bulk else {})


def measure_load(step: Step) -> None:
    """Measure the clients through a batcher whose cache is off, with token ids made beforehand."""
    from batching.batcher import Batcher  # needs cachetools, which nothing else here does

    if (engine := load(step)) is None:
        return
    work = step.workload
    singles = make_texts(step.checkpoint, [SHORT] * work.clients, seed=5)
    bulk = mixed_texts(step.checkpoint, work.bulk_texts)
    batcher = Batcher(engine, MOST_WAITING_TOKENS, cache_bytes=0)

    def run(beside: Texts | None, seconds: float) -> dict[str, float]:
        return asyncio.run(serve(batcher, singles, beside, seconds))

    try:
        step.attempt(("warm-up",), partial(run, bulk, work.load_s / 4))
        title = f"{work.clients} clients with one text of {SHORT} tokens each"
        step.part((title, "alone"), partial(run, None, work.load_s))
        step.part((title, f"beside a request of {work.bulk_texts:,} mixed texts"), partial(run, bulk, work.load_s))
    finally:
        batcher.close()
