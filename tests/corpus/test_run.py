"""Runs that stop and go on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpus.rows import CorpusError
from corpus.shards import shards_path
from engine.packed import PackedEngine
from tests.support.corpora import embed, texts, write


def test_a_run_stops_at_a_bad_row_and_goes_on_when_it_is_mended(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(60)]
    rows[40] = {"text": None}
    source, output = write(tmp_path / "a.jsonl", rows), tmp_path / "v.parquet"
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 41: text: it is null; .*What was done is kept: mend it and"):
        embed(engine, source, output)
    assert not output.exists() and len(list(shards_path(output).glob("0000000?"))) == 2
    rows[40] = {"text": "mended"}
    last = embed(engine, write(source, rows), output)
    assert (last.rows, last.resumed, last.computed) == (60, 32, 28)
    embed(engine, source, tmp_path / "whole.parquet")
    assert output.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_stopped_run_can_go_on_skipping(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(40)]
    source = write(tmp_path / "a.jsonl", [*rows[:20], {"text": None}, *rows[20:]])
    with pytest.raises(CorpusError, match=r"line 21: .*or skip such rows \(on-error skip\)"):
        embed(engine, source, tmp_path / "v.npy")
    last = embed(engine, source, tmp_path / "v.npy", skip=True)
    assert (last.resumed, last.skipped, len(np.load(tmp_path / "v.npy"))) == (16, 1, 40)


def test_a_changed_input_is_refused(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(40)]
    source = write(tmp_path / "a.jsonl", [*rows, {"text": None}])
    with pytest.raises(CorpusError, match="line 41"):
        embed(engine, source, tmp_path / "v.npy")
    rows[20] = {"text": "changed"}
    with pytest.raises(
        CorpusError, match=r"the input has changed .* between 17 and 32 .*; restore it, or delete .*parts"
    ):
        embed(engine, write(source, rows), tmp_path / "v.npy")
