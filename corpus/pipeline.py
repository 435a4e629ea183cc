"""Blocks in, shards on the disk: prepared, computed and stored, each in a thread, so that the three overlap."""

import operator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from corpus.blocks import Block
from corpus.compute import Embed, PreparedBlock, TextVectors, compute, prepare_block
from corpus.shards import ShardFolder
from engine.tokenizer import Tokenizer
from texts.options import Options


class RunProgress(NamedTuple):
    """What a run has done, or one block of it: `rows` were embedded, of which `resumed` were done before.

    `computed` texts had `tokens` tokens. `expected` is how many rows the input seems to have. Known at the end are the
    `skipped` rows, and how many vectors are of texts that began with a prompt (`prompted`).
    """

    blocks: int = 0
    rows: int = 0
    resumed: int = 0
    computed: int = 0
    tokens: int = 0
    expected: int = 0
    skipped: int = 0
    prompted: int = 0

    def plus(self, block: "RunProgress") -> "RunProgress":
        """Return the sum."""
        return RunProgress(*map(operator.add, self, block))


class Pipeline:
    """The next block is prepared while one is computed and the one before is written."""

    def __init__(self, tokenizer: Tokenizer, embed: Embed, options: Options, shards: ShardFolder, skip: bool) -> None:
        """`embed` is only ever called by one thread; `skip` stores refused texts instead of stopping at one."""
        self._prepare = partial(prepare_block, tokenizer, options, skip=skip)
        self._compute = partial(compute, embed, options)
        self._shards = shards
        self._threads = [ThreadPoolExecutor(1, name) for name in ("prepare", "compute", "store")]

    def submit(self, block: Block) -> "Future[RunProgress]":
        """Start on a block; the future is done when its shard is on the disk, and raises UnfitRow or OSError."""
        preparing, computing, storing = self._threads
        prepared = preparing.submit(self._prepare, block)
        vectors = computing.submit(lambda: self._compute(prepared.result()))
        return storing.submit(lambda: self._store(prepared.result(), vectors.result()))

    def _store(self, prepared: PreparedBlock, vectors: TextVectors) -> RunProgress:
        self._shards.write(prepared.block, vectors)
        block = prepared.block
        return RunProgress(1, block.fit_rows, computed=len(block.texts), tokens=prepared.tokens)

    def close(self) -> None:
        """Drop what has not been started; what has been goes on to the end of its step."""
        for thread in self._threads:
            thread.shutdown(wait=False, cancel_futures=True)
