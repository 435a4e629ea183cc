"""The file of a prediction, on an engine without a server: its output, a full queue, cancelling and errors."""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from batching.errors import Busy
from batching.request import Cost
from corpus import prediction
from corpus.asked_file import InputFile
from corpus.blocks import BlockLimits
from corpus.prediction import FileProgress
from corpus.rows import Columns, CorpusError
from engine.contract import Ranges
from engine.packed import PackedEngine
from tests.support.corpora import embed, output_vectors, texts, write
from tests.support.files import file_size_limit
from texts.options import Options

COST = Cost(0, 0, 1, 0)


class Queue:
    """A batcher for one caller: busy for the first `busy` calls; after `hangs_after` it never answers."""

    def __init__(self, engine: PackedEngine, busy: int = 0, hangs_after: int | None = None) -> None:
        self.engine, self.busy, self.hangs_after = engine, busy, hangs_after
        self.calls = 0
        self.hanging = asyncio.Event()

    async def embed(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> tuple[np.ndarray, Cost]:
        self.calls += 1
        if self.calls <= self.busy:
            raise Busy("too much is waiting")
        if self.calls - 1 == self.hangs_after:
            self.hanging.set()
            await asyncio.Event().wait()
        return await asyncio.to_thread(self.engine.embed, token_ids, ranges), COST


async def embed_file(queue: Queue, source: Path, output: Path, skip: bool = False) -> FileProgress:
    described = InputFile(source, "auto", Columns(), skip, output.suffix[1:])
    return await prediction.embed_file(described, output, Options(), queue.engine.tokenizer, queue.embed, "small")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "LIMITS", BlockLimits(rows=16, remembered=0))


@pytest.mark.parametrize("form", ["parquet", "npy", "jsonl"])
@pytest.mark.usefixtures("small_blocks")
def test_a_prediction_and_a_run_write_the_same(engine: PackedEngine, tmp_path: Path, form: str) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": text} for text in texts(40)])
    progress = asyncio.run(embed_file(Queue(engine), source, tmp_path / f"v.{form}"))
    assert (progress.rows, progress.skipped) == (40, 0) and progress.tokens > 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", f"v.{form}"]
    embed(engine, source, tmp_path / f"run.{form}")
    if form == "parquet":
        own = pq.read_table(tmp_path / "run.parquet").drop_columns(["text_hash"])  # only runs are updated
        assert pq.read_table(tmp_path / "v.parquet").equals(own)
    else:
        assert (tmp_path / f"v.{form}").read_bytes() == (tmp_path / f"run.{form}").read_bytes()


def test_a_file_waits_where_the_queue_is_full(engine: PackedEngine, tmp_path: Path) -> None:
    queue = Queue(engine, busy=2)
    source = write(tmp_path / "a.txt", [{"text": text} for text in texts(5)])
    asyncio.run(embed_file(queue, source, tmp_path / "v.npy"))
    assert queue.calls == 3 and len(output_vectors(tmp_path / "v.npy")) == 5


@pytest.mark.usefixtures("small_blocks")
def test_a_cancelled_file_computes_nothing_more_and_leaves_nothing(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [{"text": text} for text in texts(200)])
    queue = Queue(engine, hangs_after=3)

    async def cancel() -> None:
        running = asyncio.create_task(embed_file(queue, source, tmp_path / "v.npy"))
        await queue.hanging.wait()
        assert (tmp_path / "npy.partial").exists()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    assert queue.calls == 4 and [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.usefixtures("small_blocks")
def test_a_bad_row_stops_a_file_and_leaves_nothing(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [*({"text": text} for text in texts(40)), {"text": " "}])
    with pytest.raises(
        CorpusError, match=r"^file, line 41: text: .*\. Mend it, or skip such rows with on_error 'skip'$"
    ):
        asyncio.run(embed_file(Queue(engine), source, tmp_path / "v.jsonl"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_said_in_a_sentence(engine: PackedEngine, tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [{"text": text} for text in texts(5)])
    said = r"^the answer's file: cannot be written: File too large; make room on the server's disk$"
    with file_size_limit(8_000), pytest.raises(CorpusError, match=said):
        asyncio.run(embed_file(Queue(engine), source, tmp_path / "v.npy"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.usefixtures("small_blocks")
def test_a_hundred_skipped_rows_are_named(
    engine: PackedEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [{"text": text} if i % 2 else {"text": None} for i, text in enumerate(texts(240))]
    caplog.set_level(logging.INFO, "corpus")
    progress = asyncio.run(
        embed_file(Queue(engine), write(tmp_path / "a.jsonl", rows), tmp_path / "v.jsonl", skip=True)
    )
    assert (progress.rows, progress.skipped) == (120, 120)
    ids = [json.loads(line)["id"] for line in (tmp_path / "v.jsonl").read_text().splitlines()]
    assert ids == list(range(2, 241, 2))
    first, *skipped, last = caplog.messages[-102:]
    assert first == f"120 of about 120 rows, {progress.tokens} tokens"
    assert skipped[0] == "file, line 1: text: it is null; give a text, or leave it out; skipped" and len(skipped) == 100
    assert last == "and 20 more rows were skipped"
