"""Measure the processor's time around the device: tokenizing, batching before an instant engine, packing.

python -m lab.benchmarks.host checkpoints/small
"""

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from batching.batcher import Batcher
from engine.contract import DIMENSIONS, Engine, Ranges, TokenIds
from engine.packing import layout_of
from engine.tokenizer import Tokenizer
from lab.benchmarks.texts import random_texts
from texts.options import Options
from texts.prepare import prepare

ROUNDS = 10
CLIENTS, TEXTS, LENGTH = 64, 2_048, 16
PASS_TOKENS, PASS_TEXTS = 16_384, 120


class InstantEngine(Engine):
    """An engine whose device takes no time; its vectors are ones."""

    batch_tokens, batches_in_flight = PASS_TOKENS, 2

    def launch(self, token_ids: Sequence[TokenIds], ranges: Ranges | None = None) -> Callable[[], np.ndarray]:
        return lambda: np.ones((len(token_ids), DIMENSIONS), dtype=np.float32)


def cpu_us(run: Callable[[], object]) -> float:
    """Return the microseconds of all threads in the best round; other programs disturb them less than the clock's."""
    taken_s = []
    for _ in range(ROUNDS):
        start = time.process_time()
        run()
        taken_s.append(time.process_time() - start)
    return min(taken_s) * 1e6


def serve(token_ids: Sequence[TokenIds]) -> None:
    """Embed each text as a request of its own, from CLIENTS at once."""
    batcher, left = Batcher(InstantEngine(), 10**9, cache_bytes=0), iter(token_ids)

    async def client() -> None:
        for ids in left:
            await batcher.embed([ids])

    async def clients() -> None:
        await asyncio.gather(*[client() for _ in range(CLIENTS)])

    asyncio.run(clients())
    batcher.close()


def main(checkpoint: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    tokenizer, options = Tokenizer(checkpoint), Options(task="none")
    texts = random_texts(tokenizer, [LENGTH] * TEXTS, seed=0)
    short = prepare(tokenizer, texts, [None] * TEXTS, options).token_ids
    lengths = [PASS_TOKENS // PASS_TEXTS] * (PASS_TEXTS - 1) + [PASS_TOKENS // PASS_TEXTS + PASS_TOKENS % PASS_TEXTS]
    long = [text.ids for text in tokenizer.encode([""] * PASS_TEXTS, random_texts(tokenizer, lengths, seed=1))]
    prepared_us = cpu_us(lambda: prepare(tokenizer, texts, [None] * TEXTS, options))
    logging.info("%d texts of %d tokens prepared: %.1f us a text", TEXTS, LENGTH, prepared_us / TEXTS)
    logging.info("a request each, %d at once: %.1f us", CLIENTS, cpu_us(lambda: serve(short * 5)) / TEXTS / 5)
    packed_us = cpu_us(lambda: layout_of(lengths, None).pack(long))
    logging.info("%d tokens in %d texts packed: %.0f us", PASS_TOKENS, PASS_TEXTS, packed_us)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
