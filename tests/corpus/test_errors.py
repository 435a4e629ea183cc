"""Every error a user can cause is one sentence of `scripts.embed_corpus` or a prediction, without a traceback."""

import asyncio
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batching.request import Cost
from corpus.asked_file import InputFile
from corpus.output_files import check_output
from corpus.prediction import embed_file
from corpus.rows import Columns, CorpusError
from corpus.shards import shards_path
from engine.packed import PackedEngine
from scripts import embed_corpus
from tests.support.corpora import output_rows, texts, write
from texts.options import Options


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Return the sentence with which a run ends."""

    def run(source: Path | str, output: Path | str, *options: str) -> str:
        arguments = ["embed_corpus", str(source), str(output), "--weights", "small", "--window", "16", *options]
        monkeypatch.setattr("sys.argv", arguments)
        with pytest.raises(SystemExit) as ended:
            embed_corpus.main()
        message = str(ended.value.code)
        assert message.startswith("embed_corpus: ") and "\n" not in message
        return message.removeprefix("embed_corpus: ")

    return run


def run_again(monkeypatch: pytest.MonkeyPatch, source: Path, output: Path, *options: str) -> None:
    arguments = ["embed_corpus", str(source), str(output), "--weights", "small", "--window", "16", *options]
    monkeypatch.setattr("sys.argv", arguments)
    embed_corpus.main()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "a.jsonl", [{"text": text} for text in texts(9)])


def test_outputs_that_cannot_be(said: Callable[..., str], source: Path, tmp_path: Path) -> None:
    for url, problem in (
        ("http://localhost/v.parquet", "nothing is written by http; name a path, or a URL of s3, gs, abfs, ..."),
        ("nowhere://bucket/v.parquet", "cannot be opened: ValueError: Protocol not known: nowhere; check the address"),
    ):
        assert said(source, url) == f"{url}: {problem}"
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    for output, problem in (
        ("/proc/v.parquet", r"(: nothing may be written in /proc; name another folder|\.parts: cannot be written: .*)"),
        (tmp_path / "file" / "v.npy", ": there is no folder .*file; make it first"),
        (tmp_path / ("d" * 300) / "v.npy", ": cannot be written: File name too long; name another"),
        (tmp_path / "loop" / "v.npy", ": (there is no folder|cannot be written).*"),
    ):
        assert re.fullmatch(f"{output}{problem}", said(source, output))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "file", "loop"]


@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".jsonl"])
def test_a_name_is_refused_exactly_where_one_beside_it_is_too_long(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, suffix: str
) -> None:
    def named(length: int) -> Path:
        name = f"é{'n' * (length - len(suffix) - 2)}{suffix}"
        assert len(os.fsencode(name)) == length
        return tmp_path / name

    source = write(tmp_path / "a.jsonl", [{"text": "one"}, {"text": None}])
    longest = 200
    with suppress(CorpusError):
        while True:
            check_output(named(longest + 1))
            longest += 1
    assert longest > 230
    run_again(monkeypatch, source, named(longest), "--on-error", "skip")
    for more in (1, 20):
        assert (
            f"the name is too long by {more} bytes, as files beside it have up to {255 + more} and 255 are the most "
            "there; shorten it"
        ) in said(source, named(longest + more), "--on-error", "skip")
    assert len(output_rows(named(longest))) == 1


def test_a_run_does_not_write_over_its_input(said: Callable[..., str], tmp_path: Path) -> None:
    for name, output in (("v.rows.parquet", "v.npy"), ("v.skipped.jsonl", "v.parquet")):
        source = write(tmp_path / name, [{"text": "one"}])
        assert said(source, tmp_path / output) == (
            f"{source}: the run to {tmp_path / output} writes a file of this name; name another output"
        )


SEAMS: list[tuple[Any, str]] = [
    (fcntl, "flock"),
    (Path, "mkdir"),
    (Path, "open"),
    (os, "fsync"),
    (Path, "replace"),
    (os, "link"),
]
ERRNOS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EMFILE]


@pytest.mark.parametrize(("where", "name"), SEAMS, ids=[name for _, name in SEAMS])
def test_a_disk_that_fails_at_any_call(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path, where: Any, name: str
) -> None:
    """The first call fails, then the second, and so on, until the run succeeds."""
    true, output = getattr(where, name), tmp_path / "v.npy"
    for nth in range(30):
        number = ERRNOS[nth % len(ERRNOS)]
        left = [nth]

        def failing(*args: Any, left: list[int] = left, number: int = number, **kwargs: Any) -> Any:
            concerns_output = where in (os, fcntl) or str(output) in str(args[0])
            left[0] -= concerns_output
            if left[0] < 0 and concerns_output:
                raise OSError(number, os.strerror(number))
            return true(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(where, name, failing)
            try:
                message = said(source, output)
            except pytest.fail.Exception:
                break  # it came to its end
        assert f"cannot be written: {os.strerror(number)}; " in message and message.startswith(str(output))
        assert not output.exists()
        shutil.rmtree(shards_path(output), ignore_errors=True)
    assert 0 < nth < 29 and output.exists()


# Every error that pyarrow knows.
ARROW_ERRORS = [
    kind for kind in vars(pa.lib).values() if isinstance(kind, type) and issubclass(kind, pa.ArrowException)
]


def test_every_error_of_pyarrow_is_said(
    said: Callable[..., str], engine: PackedEngine, monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path
) -> None:
    assert len(ARROW_ERRORS) > 6
    for kind in ARROW_ERRORS:

        def fail(*_: object, kind: type = kind, **__: object) -> None:
            raise kind("a fault\nin two lines")

        is_memory = issubclass(kind, MemoryError)
        with monkeypatch.context() as patch:
            patch.setattr(pq.ParquetWriter, "write_table", fail)
            said_by_server = "a fault" if is_memory else "the answer's file: cannot be written"
            with pytest.raises(MemoryError if is_memory else CorpusError, match=said_by_server):
                predict(engine, source, Columns())
            if not is_memory:
                assert said(source, tmp_path / "v.parquet").startswith(
                    f"{tmp_path}/v.parquet: cannot be written: a fault in two lines; what is done is kept in "
                )


def test_stored_blocks_that_are_damaged(
    said: Callable[..., str], monkeypatch: pytest.MonkeyPatch, source: Path, tmp_path: Path
) -> None:
    broken = source.read_bytes()
    source.write_bytes(broken + b"{\n")
    output, blocks = tmp_path / "v.parquet", ("--window", "9")
    assert "line 10: not JSON" in said(source, output, *blocks)
    shard, *_ = shards_path(output).glob("0*")
    source.write_bytes(broken)
    whole = shard.read_bytes()
    for length in (0, 100, len(whole) // 20, len(whole) // 2, len(whole) - 1000):
        shard.write_bytes(whole[:length])
        sentence = said(source, output, *blocks)
        assert sentence.startswith(f"{shard}: it is damaged: "), length
        assert sentence.endswith(f"; delete it, or all of {shard.parent}, and run the same again")
    shard.unlink()
    shard.mkdir()  # as earlier versions stored a block
    assert said(source, output, *blocks).endswith(f"; delete it, or all of {shard.parent}, and run the same again")
    shard.rmdir()
    (shards_path(output) / "manifest.json").write_text("{")
    assert said(source, output, *blocks).endswith(".parts: its manifest is damaged; delete the folder to start anew")
    shutil.rmtree(shards_path(output))
    run_again(monkeypatch, source, output, *blocks)
    assert len(output_rows(output)) == 9


def test_options_and_weights(said: Callable[..., str], capsys: pytest.CaptureFixture[str], source: Path) -> None:
    output = source.with_name("v.npy")
    assert "/nowhere/at/all" in said(source, output, "--weights", "/nowhere/at/all")
    for options in (["--window", "0"], ["--window", "-5"], ["--workers", "3-1"], ["--workers", "x"]):
        with pytest.raises(SystemExit) as ended:
            embed_corpus.parse([str(source), str(output), *options])
        assert ended.value.code == 2
        assert "is no whole number of 1 or more" in (err := capsys.readouterr().err) or "begins with more" in err


def test_what_a_run_says_is_what_its_output_has(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = [*({"text": text} for text in texts(20)), {"text": "w " * 3000}, {"text": None}]
    source, output = write(tmp_path / "a.jsonl", rows), tmp_path / "v.jsonl"
    caplog.set_level("INFO")
    run_again(monkeypatch, source, output, "--on-error", "skip", "--truncate", "none")
    assert any(message.startswith(f"{output}: 20 rows, ") for message in caplog.messages)
    assert len(output_rows(output)) == 20
    assert len((tmp_path / "v.skipped.jsonl").read_text().splitlines()) == 2


def test_no_row_with_a_vector_says_why(said: Callable[..., str], tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": None}, {"text": " "}])
    assert said(source, tmp_path / "v.npy", "--on-error", "skip").endswith(
        "v.npy: not written, as no row of the input has a vector; the first, number 1: text: it is null; give a text, "
        "or leave it out"
    )


def test_whole_numbers_of_64_bits_as_ids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ids = [*range(20), (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    rows = [{"text": text, "key": key} for text, key in zip(texts(len(ids)), ids, strict=True)]
    source = write(tmp_path / "a.jsonl", rows)
    for form in ("parquet", "npy", "jsonl"):
        run_again(monkeypatch, source, tmp_path / f"v.{form}", "--id", "key")
        assert [row["id"] for row in output_rows(tmp_path / f"v.{form}")] == ids
    assert pq.read_schema(tmp_path / "v.parquet").field("id").type == pa.uint64()


async def no_vectors(token_ids: Sequence[Sequence[int]], ranges: object) -> tuple[np.ndarray, Cost]:
    return np.ones((len(token_ids), 768), np.float32), Cost(0, 0, 1, 0)


def predict(engine: PackedEngine, source: Path, columns: Columns, skip: bool = False) -> Any:
    output = source.with_name("prediction.parquet")
    described = InputFile(source, "auto", columns, skip, "parquet")
    options = Options(truncate="none")
    return asyncio.run(embed_file(described, output, options, engine.tokenizer, no_vectors, "small"))


def test_a_prediction_of_late_large_ids_says_so(engine: PackedEngine, tmp_path: Path) -> None:
    rows = [{"text": "same", "key": key} for key in [*range(2100), 1 << 63]]
    with pytest.raises(
        CorpusError, match=r"^id: one does not fit the type of those before it, int64; write all ids as str"
    ):
        predict(engine, write(tmp_path / "a.jsonl", rows), Columns(id="key"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_prediction_counts_what_its_answer_has(engine: PackedEngine, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "one"}, {"text": "w " * 3000}, {"text": None}]
    progress = predict(engine, write(tmp_path / "a.jsonl", rows), Columns(), skip=True)
    assert (progress.rows, progress.skipped) == (1, 2)
    assert len(output_rows(tmp_path / "prediction.parquet")) == 1
