"""A lake on S3: the same rows as from this machine, also while requests fail."""

import random
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
import s3fs

from corpus import columnar
from corpus.inputs import Inputs
from corpus.listing import listed
from corpus.rows import Columns, CorpusError
from engine.packed import PackedEngine
from tests.support.corpora import embed, output_rows, output_vectors, texts, write
from tests.support.s3 import KEYS, FailingS3, failing_s3

FORMS = ["a.parquet", "year=2024/b.jsonl.gz", "year=2025/c.arrow", "d.csv.zst", "year=2025/e.txt"]
COLUMNS = Columns(carried=("year",))


@pytest.fixture(scope="module")
def server() -> Iterator[FailingS3]:
    with failing_s3() as running:
        yield running


@pytest.fixture
def s3(server: FailingS3, monkeypatch: pytest.MonkeyPatch) -> Iterator[FailingS3]:
    """The server, for this process and those that it starts."""
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    while columnar._idle:
        columnar._end(columnar._idle.pop())  # its environment has no such server
    s3fs.S3FileSystem.clear_instance_cache()
    yield server
    server.failures.clear()
    while columnar._idle:
        columnar._end(columnar._idle.pop())


@pytest.fixture
def lake(s3: FailingS3, tmp_path: Path) -> Path:
    """A folder with files of many formats, which the bucket has too."""
    client = boto3.client("s3")
    client.create_bucket(Bucket="lake")
    for i, name in enumerate(FORMS):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        path = write(tmp_path / "in" / name, [{"text": text} for text in texts(60, i * 60)])
        client.upload_file(str(path), "lake", f"pages/{name}")
    client.put_object(Bucket="lake", Key="pages/_SUCCESS", Body=b"")
    return tmp_path / "in"


def test_a_lake_is_read_as_a_folder_is(engine: PackedEngine, s3: FailingS3, lake: Path, tmp_path: Path) -> None:
    embed(engine, lake, tmp_path / "v.parquet", COLUMNS)
    generator = random.Random(1)
    s3.failures += [generator.choice(["503", "cut", "slow", None]) for _ in range(16)]
    embed(engine, "s3://lake/pages/", tmp_path / "remote.parquet", COLUMNS)
    assert len(s3.failures) < 4, "most were met"
    assert output_rows(tmp_path / "remote.parquet") == output_rows(tmp_path / "v.parquet")
    assert output_vectors(tmp_path / "remote.parquet").tobytes() == output_vectors(tmp_path / "v.parquet").tobytes()
    s3.failures.clear()
    matched = [(file.path, file.name, file.partition) for file in listed(["s3://lake/pages/**/*.*"])]
    assert matched == [(f"s3://lake/pages/{file.name}", file.name, file.partition) for file in listed([str(lake)])]


def test_a_server_that_keeps_failing_stops_the_run_which_then_goes_on(
    engine: PackedEngine, s3: FailingS3, lake: Path, tmp_path: Path
) -> None:
    inputs = Inputs(["s3://lake/pages"], COLUMNS, skip=True)
    rows = inputs.rows()
    next(rows)
    s3.failures += ["503"] * 1000
    with pytest.raises(CorpusError, match=r"^s3://lake/pages/.*: cannot be .*(SlowDown|503|reduce)"):
        list(rows)
    s3.failures.clear()
    assert sum(1 for _ in inputs.rows()) == 300


def test_what_is_not_there_or_forbidden(s3: FailingS3, lake: Path) -> None:
    for url, words in (
        ("s3://lake/nothing/*.parquet", "no file matches it; check the path"),
        ("s3://lake/nothing.jsonl", "cannot be opened: "),
        ("s3://no-such-bucket/pages/*.jsonl", "(no file matches it|cannot be listed)"),
    ):
        with pytest.raises(CorpusError, match=rf"^{url.replace('*', '.')}: {words}"):
            Inputs([url], Columns())
