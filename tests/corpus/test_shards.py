"""The folder of a run: shards that cannot be written."""

from pathlib import Path
from typing import Any

import pytest

from corpus.rows import CorpusError
from corpus.shards import ShardFolder, shards_path
from engine.packed import PackedEngine
from tests.support.corpora import embed, output_rows, texts, write
from tests.support.files import file_size_limit


def test_a_run_that_stored_nothing_does_not_hold_the_next_to_its_settings(tmp_path: Path) -> None:
    parts = shards_path(tmp_path / "v.parquet")
    for column, identity in (("body", "old"), ("text", "new")):
        shards = ShardFolder(tmp_path / "v.parquet")
        shards.open({"text": column})
        shards.check_previous(identity)
        shards.close()
    (parts / "00000000").touch()
    with pytest.raises(CorpusError, match=r"text: it is 'body', and the run to go on with had 'text'; run it"):
        ShardFolder(tmp_path / "v.parquet").open({"text": "body"})
    (parts / "00000000").unlink()
    (parts / "manifest.json").write_text('{"name": "of another program"}')
    with pytest.raises(CorpusError, match="text: it is 'text', and the run to go on with had None"):
        ShardFolder(tmp_path / "v.parquet").open({"text": "text"})
    assert "another program" in (parts / "manifest.json").read_text()


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
