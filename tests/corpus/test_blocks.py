"""Blocks of rows: duplicates are computed once, and the same rows give the same blocks."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from corpus.blocks import BLOCK, PROBLEM, TEXT, Block, BlockLimits, blocks
from corpus.rows import BadRow, Columns, Row, UnfitRow
from engine.packed import PackedEngine
from tests.support.corpora import embed, texts, write


def test_duplicates_are_computed_once(engine: PackedEngine, expected: np.ndarray, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in [*texts(40), *texts(40)]]
    remembered = embed(engine, write(tmp_path / "a.jsonl", rows), tmp_path / "a.npy")
    assert (remembered.rows, remembered.computed) == (80, 40)
    forgetful = embed(engine, tmp_path / "a.jsonl", tmp_path / "b.npy", limits=BlockLimits(rows=16, remembered=1))
    assert 70 < forgetful.computed <= 80
    np.testing.assert_allclose(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"), atol=1e-6)
    titled: list[dict[str, Any]] = [
        {"text": "same", "head": "One"},
        {"text": "same", "head": "Two"},
        {"text": "same", "head": None},
    ]
    other = embed(engine, write(tmp_path / "c.jsonl", titled), tmp_path / "c.npy", Columns(title="head"))
    assert other.computed == 3, "another title is another text"


def gathered(count: int, limits: BlockLimits) -> list[Block]:
    rows = [Row(i + 1, text, None, i, (text,)) for i, text in enumerate([*texts(count), *texts(count)])]
    return list(blocks(rows, limits, [pa.field("text", pa.string())], skip=False))


def test_the_same_rows_give_the_same_blocks() -> None:
    limits = BlockLimits(rows=16, remembered=8)
    first, second = gathered(40, limits), gathered(40, limits)
    assert [(block.digest, block.texts) for block in first] == [(block.digest, block.texts) for block in second]
    assert [len(block.rows) for block in first] == [16] * 5
    assert len({block.digest for block in first}) == 5


def test_a_block_ends_where_its_limit_of_characters_is_reached() -> None:
    assert [len(block.rows) for block in gathered(2, BlockLimits(rows=16, chars=1))] == [1] * 4


def test_a_row_names_the_block_that_has_its_text() -> None:
    for remembered, texts_of_blocks in ((1 << 10, [4, 0]), (0, [4, 4])):
        first, second = gathered(4, BlockLimits(rows=4, remembered=remembered))
        assert [len(first.texts), len(second.texts)] == texts_of_blocks
        assert set(second.rows[BLOCK].to_pylist()) == {0 if remembered else 1}
        assert second.rows[TEXT].to_pylist() == [0, 1, 2, 3]


def test_a_bad_row_stops_or_keeps_its_place() -> None:
    rows: list[Row | BadRow] = [Row(1, "one", None, 1), BadRow(2, "text: it is null"), Row(3, "three", None, 3)]
    with pytest.raises(UnfitRow, match="text: it is null"):
        list(blocks(rows, BlockLimits(), [], skip=False))
    [block] = blocks(rows, BlockLimits(), [], skip=True)
    assert block.fit_rows == 2 and block.rows[PROBLEM].to_pylist() == [None, "text: it is null", None]
