"""Outputs on S3: whole or not there, whatever the network does, and updated there."""

import json
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus.shards import shards_path
from tests.support.s3 import Server, s3_server
from tests.support.updates import ROWS, Runs, changed, same

OUTPUTS = ["s3://bucket/v.parquet", "s3://bucket/a/v/"]


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Server, str]]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(started: tuple[Server, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """The server with an empty bucket, as the environment names it."""
    server, url = started
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # s3fs tries again after less time
    fsspec.filesystem("s3").mkdir("bucket")
    yield server
    server.fault = lambda method, path: ""
    fsspec.filesystem("s3").rm("bucket", recursive=True)


@pytest.fixture
def run(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Runs:
    monkeypatch.setattr("corpus.assembly.MB", 30_000)  # files of a folder are small
    return Runs(tmp_path, monkeypatch, caplog)


def there(url: str) -> list[str]:
    """Return the names at a URL and below it."""
    files = fsspec.filesystem("s3")
    files.invalidate_cache()
    return sorted(path.removeprefix("bucket/") for path in files.find(url))


def read(url: str) -> pa.Table:
    return pq.read_table(url.removeprefix("s3://"), filesystem=fsspec.filesystem("s3"))


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


def test_an_update_uploads_only_the_files_that_changed(run: Runs, s3: Server) -> None:
    output = OUTPUTS[1]
    run(ROWS, output)
    assert len(there(output)) > 4
    s3.requests.clear()
    after = [dict(row) for row in ROWS]
    after[30]["text"] = "another text"
    run(after, output, "--update")
    assert [request for request in s3.requests if request.startswith("PUT")] == [
        "PUT /bucket/a/v/part-00003.parquet",
        "PUT /bucket/a/v/_SUCCESS",
    ]


def test_a_file_that_is_empty_after_an_update_goes(run: Runs) -> None:
    output = OUTPUTS[1]
    run(ROWS, output)
    gone = there(output)[-1]
    listed = json.loads(fsspec.filesystem("s3").cat(f"{output}_SUCCESS"))["files"]
    kept = ROWS[: -listed[Path(gone).name]]
    assert run(kept, output, "--update", "--remove") == f"{len(kept)} rows, 0 computed"
    assert gone not in there(output) and read(output).num_rows == len(kept)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("fault", ["503", "cut", "slow"])
def test_a_fault_at_times_changes_nothing(run: Runs, s3: Server, output: str, fault: str) -> None:
    assert run(ROWS, output) == "60 rows, 60 computed"
    before, count = read(output), 0

    def sometimes(method: str, path: str) -> str:
        nonlocal count
        count += method == "PUT"
        return fault if method == "PUT" and count % 2 else ""

    fsspec.filesystem("s3").rm(output, recursive=True)
    s3.fault = sometimes
    assert run(ROWS, output) == "60 rows, 60 computed"
    assert s3.failed and read(output).equals(before)


@pytest.mark.parametrize("output", OUTPUTS)
def test_where_writing_fails_for_long_the_same_command_goes_on(
    run: Runs, s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str
) -> None:
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    fsspec.filesystem("s3").clear_instance_cache()
    last = "v.parquet" if output.endswith("parquet") else "part-00002.parquet"
    s3.fault = lambda method, path: "503" if method in ("PUT", "POST") and path.endswith(last) else ""
    said = run(ROWS, output)
    work = shards_path(tmp_path / ("v.parquet" if output.endswith("parquet") else "v"))
    assert f"{output}: cannot be written: " in said and said.endswith("run the same again")
    assert not any(name.endswith(("_SUCCESS", last)) for name in there("s3://bucket/"))
    assert work.exists()
    s3.fault = lambda method, path: ""
    assert run(ROWS, output).endswith("it was whole already")
    assert read(output).num_rows == 60 and not work.exists()
