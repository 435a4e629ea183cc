"""Runs that stop and are continued."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from corpus.rows import CorpusError
from corpus.shards import shards_path
from engine.packed import PackedEngine
from tests.support.corpora import embed, texts, write
from texts.options import Options


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


def test_rows_that_begin_with_a_prompt_are_told_and_get_no_second_one(engine: PackedEngine, tmp_path: Path) -> None:
    plain = texts(20)
    own = [f"title: none | text: {text}" if i in (3, 17) else text for i, text in enumerate(plain)]
    last = embed(engine, write(tmp_path / "own.jsonl", [{"text": text} for text in own]), tmp_path / "own.parquet")
    assert (last.rows, last.prompted) == (20, 2)
    embed(engine, write(tmp_path / "plain.jsonl", [{"text": text} for text in plain]), tmp_path / "plain.parquet")
    table, expected = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("own", "plain"))
    assert [i for i, prompted in enumerate(table["prompted"].to_pylist()) if prompted] == [3, 17]
    assert table["embedding"].equals(expected["embedding"])


def test_a_row_with_another_tasks_prompt_is_a_bad_one(engine: PackedEngine, tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "task: clustering | query: two"}]
    source, options = write(tmp_path / "a.jsonl", rows), Options(task="retrieval_query")
    with pytest.raises(CorpusError, match="line 2: the text begins with the prompt of task 'clustering', and the task"):
        embed(engine, source, tmp_path / "v.npy", options=options)
    assert embed(engine, source, tmp_path / "v.npy", options=options, skip=True).skipped == 1
