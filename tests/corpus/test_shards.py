"""The folder of a run: which run it belongs to, and shards that cannot be written."""

from pathlib import Path
from typing import Any

import pytest

from corpus.rows import CorpusError
from corpus.shards import ShardFolder, shards_path
from engine.packed import PackedEngine
from tests.support.corpora import embed, output_rows, texts, write
from tests.support.files import file_size_limit


def test_changed_settings_and_a_second_run_are_refused(tmp_path: Path) -> None:
    shards = ShardFolder(tmp_path / "v")
    shards.open({"task": "clustering", "dimensions": "768"})
    with pytest.raises(CorpusError, match="another run is writing there; wait for it, or name another output"):
        ShardFolder(tmp_path / "v").open({"task": "clustering", "dimensions": "768"})
    shards.close()
    with pytest.raises(
        CorpusError, match="dimensions: it is '256', and the run to go on with had '768'; run it with that"
    ):
        ShardFolder(tmp_path / "v").open({"task": "clustering", "dimensions": "256"})


def test_a_shard_that_cannot_be_written_stops_the_run(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": text} for text in texts(48)]
    source = write(tmp_path / "a.jsonl", [*rows[:16], *({"text": "same"} for _ in range(16)), *rows[16:]])
    output = tmp_path / "v.parquet"
    with (
        file_size_limit(16_000),
        pytest.raises(CorpusError, match=r"v\.parquet: cannot be written: File too la"),
    ):
        embed(engine, source, output)
    assert not list(shards_path(output).glob("*.partial*")), "nothing half written"
    embed(engine, source, output)
    assert len(output_rows(output)) == 64
