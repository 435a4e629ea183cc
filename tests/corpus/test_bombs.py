"""Files that unfold to enormous sizes: how much memory predictions and runs over them take, and how soon they stop.

`python -m pytest -s tests/corpus/test_bombs.py` prints the figures; with BOMBS_MB=1024 CORPUS_PARQUET_MB=768 those of
larger files, and of the default.
"""

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batching.errors import Busy
from corpus import columnar, prediction
from corpus.asked_file import InputFile
from corpus.prediction import embed_file
from corpus.readers import Reader
from corpus.rows import BadRow, Columns, CorpusError, Row
from engine.tokenizer import Tokenizer
from tests.support import bomb_runs
from tests.support.bombs import BOMBS, CHUNK, MB, pack, repeated
from tests.support.corpora import write
from tests.support.servers import eventually
from tests.support.watched import Watched
from texts.options import Options

PARQUET_MB = int(os.environ.get("CORPUS_PARQUET_MB", 256))
# The process that reads .parquet, with its memory at the start, and everything else beside the engine.
BOUND_MB = PARQUET_MB + 100 + 450
# Files that are no bombs, or only for the process that reads them.
READ = {"dictionary-of-loads.parquet", "list.parquet", "width.parquet", "documents.jsonl.gz", "prefixes.parquet"}


@pytest.fixture(scope="module")
def bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the files, each made when it is first read: a process may have one mode alone."""
    return tmp_path_factory.mktemp("bombs")


@pytest.fixture(scope="module")
def two_bombs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that are made in no time."""
    folder = tmp_path_factory.mktemp("two-bombs")
    for name in ("prefixes.parquet", "dictionary.parquet"):
        BOMBS[name](folder / name)
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux, to watch a process's memory")
@pytest.mark.fuzz
@pytest.mark.parametrize("mode", ["prediction", "run", "prediction 512 256"])
def test_memory_stays_under_the_bound(bombs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setenv("CORPUS_PARQUET_MB", str(PARQUET_MB))
    watched = Watched("tests.support.bomb_runs", *mode.split())
    peaks: dict[str, int] = {}
    try:
        for name, make in BOMBS.items():
            if (mode == "run" and name.startswith("blank")) or (mode.endswith("256") and "wide" not in name):
                continue
            if not (bombs / name).exists():
                make(bombs / name)
            (tmp_path / name).mkdir()
            (said, seconds), peak = watched.ask([str(bombs / name), str(tmp_path / name / "v.parquet")])
            peaks[name] = peak >> 10
            print(f"{mode:18} {name:34} {peak >> 10:5} MB {seconds:5.1f} s  {str(said)[:100]}")
            assert mode != "prediction" or name not in READ or isinstance(said, int), said
    finally:
        watched.close()
    assert max(peaks.values()) < BOUND_MB, peaks


def rows(path: Path) -> list[Row | BadRow]:
    reader = Reader(str(path), Columns())
    try:
        return list(reader.rows())
    finally:
        reader.close()


@pytest.mark.parametrize("form", ["txt", "jsonl", "csv", "parquet"])
def test_a_row_over_the_limit_is_a_bad_row_between_good_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setenv("CORPUS_LINE_MB", "1")
    texts = ["one", "x" * (MB + 1000), "y" * (MB - 100), "four"]
    first, bad, long, last = rows(write(tmp_path / f"a.{form}", [{"text": text} for text in texts]))
    assert isinstance(first, Row) and isinstance(long, Row) and isinstance(last, Row)
    what = "row" if form == "parquet" else "line"
    assert isinstance(bad, BadRow)
    assert bad.problem == f"the {what} has more than 1 MB; divide it, or set CORPUS_LINE_MB to more than 1"
    assert [row.number for row in (first, bad, long, last)] == list(range(first.number, first.number + 4))


def test_a_long_line_of_csv_that_may_take_in_others_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS_LINE_MB", "1")
    path = tmp_path / "a.csv"
    path.write_text(f'text,n\n"{"x" * 2 * MB}\nb,1\n', encoding="utf-8")
    with pytest.raises(
        CorpusError, match=r"line 2: a quote opens here, .* the line has more than 1 MB; .* not skipped"
    ):
        rows(path)
    path.write_text('text,n\n"' + "a line\n" * 200_000, encoding="utf-8")
    with pytest.raises(CorpusError, match=r"line 2: a quote opens here, .* the row has more than 1 MB; divide it, or"):
        rows(path)


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_row_of_too_many_values_is_a_bad_row(tmp_path: Path, form: str) -> None:
    values = ",".join(["1"] * 600_000)
    lines = {"jsonl": ['{"text": "a"}', f'{{"text": "b", "x": [{values}]}}', '{"text": "c"}']}
    lines["csv"] = ["text", "a", f"b,{values}", "c"]
    path = tmp_path / f"a.{form}"
    path.write_text("\n".join(lines[form]), encoding="utf-8")
    first, bad, last = rows(path)
    assert isinstance(first, Row) and isinstance(last, Row) and isinstance(bad, BadRow)
    assert "has more than 524,288 commas and brackets; leave columns out that are not needed" in bad.problem


def test_how_far_a_file_may_unpack_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt.gz"
    pack(path, repeated(b"x" * 99_999 + b"\n", 280, after=b""))
    size = path.stat().st_size
    monkeypatch.setenv("CORPUS_UNPACK_RATIO", "10")
    with pytest.raises(CorpusError, match=rf"its {size:,} bytes unpack to more than 268,435,456; .*UNPACK_RATIO to mo"):
        for _ in Reader(str(path), Columns()).rows():
            pass
    monkeypatch.setenv("CORPUS_UNPACK_RATIO", "1000")
    assert sum(1 for _ in Reader(str(path), Columns()).rows()) == 280 * (MB // 100_000)


def test_parquet_that_needs_more_memory_is_read_in_smaller_parts(
    two_bombs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORPUS_PARQUET_MB", str(PARQUET_MB))
    sizes = [len(row.text) for row in rows(two_bombs / "prefixes.parquet") if isinstance(row, Row)]
    assert sizes == [4 * MB] * 60, "240 MB, of which 64 rows were tried at once"


@pytest.mark.parametrize("name", ["endless.txt.zst", "endless.csv.zst", "endless.jsonl.zst", "dictionary.parquet"])
def test_a_prediction_is_cancelled_soon_within_a_bomb(
    two_bombs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path, name: str
) -> None:
    monkeypatch.setenv("CORPUS_UNPACK_RATIO", "1000000")
    path = tmp_path / name if name.startswith("endless") else two_bombs / name
    if path.parent == tmp_path:
        pack(path, (part for part in [b'text\n"' if ".csv" in name else b"", *[CHUNK] * 3000]))
    tokenizer = Tokenizer(small)

    async def cancel() -> None:
        source = InputFile(path, "auto", Columns(), True, "parquet")
        embedding = embed_file(source, tmp_path / "v.parquet", Options(), tokenizer, bomb_runs.embed, "none")
        running = asyncio.create_task(embedding)
        await asyncio.sleep(0.3)
        assert not running.done()
        began.append(time.process_time())
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    began: list[float] = []
    asyncio.run(cancel())
    eventually(
        lambda: not any(thread.name.startswith("corpus") for thread in threading.enumerate()), "its threads have ended"
    )
    assert time.process_time() - began[0] < 1


@pytest.fixture
def two_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FILES_AT_ONCE", "2")
    monkeypatch.setenv("FILES_WAITING", "3")


@pytest.mark.usefixtures("two_places")
def test_files_take_turns_and_a_small_one_does_not_wait_for_large_ones() -> None:
    begun: list[str] = []

    async def work(name: str, size: int, end: asyncio.Event) -> None:
        async with prediction.turn(size):
            begun.append(name)
            await end.wait()

    async def scenario() -> None:
        ends = {name: asyncio.Event() for name in ("large 1", "large 2", "large 3", "small 1", "small 2")}
        tasks = []
        for name, end in ends.items():
            tasks.append(asyncio.create_task(work(name, 1 << 30 if "large" in name else 1, end)))
            await asyncio.sleep(0)
        assert begun == ["large 1", "small 1"]
        with pytest.raises(Busy, match=r"^busy: 3 files are waiting already; send it again a moment later"):
            async with prediction.turn(1):
                pass
        tasks[1].cancel()
        ends["large 1"].set()
        await asyncio.sleep(0.01)
        assert begun[2:] == ["small 2"], "it has the place that became free before a large one asked for it"
        ends["small 1"].set()
        await asyncio.sleep(0.01)
        assert begun[3:] == ["large 3"], "the one before was cancelled"
        for end in ends.values():
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(scenario())


def test_an_answer_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    monkeypatch.setenv("FILE_ANSWER_MB", "1")
    (tmp_path / "a.txt").write_text("".join(f"text {i}\n" for i in range(1000)), encoding="utf-8")
    source = InputFile(tmp_path / "a.txt", "auto", Columns(), False, "npy")
    embedding = embed_file(source, tmp_path / "v.npy", Options(), Tokenizer(small), bomb_runs.embed, "none")
    with pytest.raises(
        CorpusError, match=r"^the answer's file: it has more than 1 MB; .* or set FILE_ANSWER_MB to more"
    ):
        asyncio.run(embedding)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


@pytest.fixture(autouse=True)
def no_process_stays() -> Iterator[None]:
    """The idle process keeps the limits of the test that started it, except the memory limit."""
    yield
    assert len(columnar._idle) <= 1
