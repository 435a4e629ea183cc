"""What the threads of a pipeline do meanwhile."""

import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from corpus import pipeline
from corpus.blocks import BlockLimits, blocks_of
from corpus.compute import PreparedBlock, TextVectors, finish
from corpus.inputs import Inputs
from corpus.rows import Columns
from corpus.shards import ShardFolder
from engine.contract import DIMENSIONS, Ranges, TokenIds
from engine.packed import PackedEngine
from engine.tokenizer import Tokenizer
from tests.support.corpora import embed
from texts.options import Options
from weights import SMALL


def test_a_block_is_computed_before_the_one_before_is_finished(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else a device would have nothing to do while vectors are normalised and converted."""
    source = tmp_path / "texts.txt"
    source.write_text("one\ntwo\n", encoding="utf-8")
    computed = threading.Semaphore(0)

    def embed(token_ids: Sequence[TokenIds], ranges: Ranges | None) -> np.ndarray:
        computed.release()
        return np.ones((len(token_ids), DIMENSIONS), dtype=np.float32)

    def finish_late(options: Options, block: PreparedBlock, vectors: np.ndarray | None) -> TextVectors:
        assert block.block.index or (computed.acquire(timeout=30) and computed.acquire(timeout=30))
        return finish(options, block, vectors)

    monkeypatch.setattr(pipeline, "finish", finish_late)
    shards = ShardFolder(tmp_path / "vectors.parquet")
    shards.open({})
    threads = pipeline.Pipeline(Tokenizer(SMALL), embed, Options(), shards, False)
    with closing(Inputs([str(source)], Columns())) as inputs, closing(shards), closing(threads):
        blocks = [block for block, _ in blocks_of(inputs, BlockLimits(rows=1), None, False)]
        stored = [threads.submit(block) for block in blocks]
        assert [future.result(60).computed for future in stored] == [1, 1]


def test_memory_between_what_blocks_leave_is_given_back(engine: PackedEngine, tmp_path: Path) -> None:
    def resident_mb() -> int:
        return int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0]) >> 10

    source = tmp_path / "texts.txt"
    source.write_text("one\n", encoding="utf-8")
    embed(engine, source, tmp_path / "before.parquet")
    left = [bytes([i % 256]) * 3000 for i in range(40_000)][::16]
    before = resident_mb()
    embed(engine, source, tmp_path / "vectors.parquet")
    assert resident_mb() < before - 60 and left, "of 120"
