"""Outputs on S3: whole or not there, whatever the network does, and updated there."""

import json
from collections.abc import Iterator
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from corpus.shards import shards_path
from tests.support.s3 import KEYS, FailingS3, failing_s3
from tests.support.updates import ROWS, Runs, changed, same

OUTPUTS = ["s3://bucket/v.parquet", "s3://bucket/a/v/"]


@pytest.fixture(scope="module")
def server() -> Iterator[FailingS3]:
    with failing_s3() as running:
        running.method = "PUT"
        yield running


@pytest.fixture
def s3(server: FailingS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FailingS3]:
    """The server with an empty bucket, as the environment names it."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("bucket")
    yield server
    server.failures, server.path = [], ""
    s3fs.S3FileSystem().rm("bucket", recursive=True)


@pytest.fixture
def run(s3: FailingS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Runs:
    monkeypatch.setattr("corpus.assembly.MB", 30_000)  # files of a folder are small
    return Runs(tmp_path, monkeypatch, caplog)


def there(url: str) -> list[str]:
    """Return the names at a URL and below it."""
    files = s3fs.S3FileSystem()
    files.invalidate_cache()
    return sorted(path.removeprefix("bucket/") for path in files.find(url))


def read(url: str) -> pa.Table:
    return pq.read_table(url.removeprefix("s3://"), filesystem=s3fs.S3FileSystem())


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_output_on_s3_is_that_of_this_machine(run: Runs, tmp_path: Path, output: str) -> None:
    here = output.replace("s3://bucket/a/", "").replace("s3://bucket/", "")
    assert run(ROWS, output) == "60 rows, 60 computed"
    assert run(ROWS, f"{tmp_path}/{here}") == "60 rows, 60 computed"
    same(read(output), pq.read_table(here))
    assert "it is there already; delete it, name another output, or update it" in run(ROWS, output)
    assert run(changed(ROWS), output, "--update", "--remove") == "60 rows, 2 computed"
    assert run(changed(ROWS), here, "--update", "--remove") == "60 rows, 2 computed"
    same(read(output), pq.read_table(here))
    assert not [*tmp_path.glob("*.parts")]


def test_an_update_uploads_only_the_files_that_changed(run: Runs, s3: FailingS3) -> None:
    output = OUTPUTS[1]
    run(ROWS, output)
    assert len(there(output)) > 4
    s3.asked.clear()
    after = [dict(row) for row in ROWS]
    after[30]["text"] = "another text"
    run(after, output, "--update")
    assert [request for request in s3.asked if request.startswith("PUT")] == [
        "PUT /bucket/a/v/part-00003.parquet",
        "PUT /bucket/a/v/_SUCCESS",
    ]


def test_a_file_that_is_empty_after_an_update_goes(run: Runs) -> None:
    output = OUTPUTS[1]
    run(ROWS, output)
    gone = there(output)[-1]
    listed = json.loads(s3fs.S3FileSystem().cat(f"{output}_SUCCESS"))["files"]
    kept = ROWS[: -listed[Path(gone).name]]
    assert run(kept, output, "--update", "--remove") == f"{len(kept)} rows, 0 computed"
    assert gone not in there(output) and read(output).num_rows == len(kept)


def test_a_dataset_of_lance_on_s3_is_replaced_at_once(
    run: Runs, s3: FailingS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    for rows, update in ((ROWS, []), (changed(ROWS), ["--update"])):
        said = [run(rows, output, *update) for output in ("s3://bucket/v.lance", f"{tmp_path}/v.lance")]
        assert said[0] == said[1] == f"{60 + len(update)} rows, {2 if update else 60} computed"
        opened = lance.dataset("s3://bucket/v.lance")
        assert opened.version == 1 + len(update)
        same(opened.to_table(), lance.dataset(f"{tmp_path}/v.lance").to_table())
    assert lance.dataset("s3://bucket/v.lance", version=1).count_rows() == 60
    assert "it is there already" in run(ROWS, "s3://bucket/v.lance")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("failure", ["503", "cut", "slow"])
def test_failures_at_times_change_nothing(run: Runs, s3: FailingS3, output: str, failure: str) -> None:
    assert run(ROWS, output) == "60 rows, 60 computed"
    before = read(output)
    s3fs.S3FileSystem().rm(output, recursive=True)
    s3.failures = [failure, None] * 4
    assert run(ROWS, output) == "60 rows, 60 computed"
    assert len(s3.failures) < 8 and read(output).equals(before)


@pytest.mark.parametrize("output", OUTPUTS)
def test_where_writing_fails_for_long_the_same_command_goes_on(
    run: Runs, s3: FailingS3, tmp_path: Path, output: str
) -> None:
    s3.path = "v.parquet" if output.endswith("parquet") else "part-00002.parquet"
    s3.failures = ["503"] * 100
    said = run(ROWS, output)
    work = shards_path(tmp_path / ("v.parquet" if output.endswith("parquet") else "v"))
    assert f"{output}: cannot be written: " in said and said.endswith("run the same again")
    assert not any(name.endswith(("_SUCCESS", s3.path)) for name in there("s3://bucket/"))
    assert work.exists()
    s3.failures = []
    assert run(ROWS, output).endswith("it was whole already")
    assert read(output).num_rows == 60 and not work.exists()
