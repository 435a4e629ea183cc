"""A file prediction where files are uploaded, as on Replicate: the answer is the file's URL, or fails cleanly."""

import io
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from container.make_openapi import ROOT
from container.server import Server, running_server
from tests.support.storage import Storage, running_storage

FILE = {"file": 'data:application/jsonl,{"text": "one"}%0A{"text": 2}%0A{"text": "three"}', "file_format": "jsonl"}


@pytest.fixture(scope="module")
def storage() -> Iterator[Storage]:
    with running_storage() as storage:
        yield storage


@pytest.fixture(scope="module")
def uploading(storage: Storage) -> Iterator[Server]:
    with running_server("small", options=("--upload-url", storage.url)) as server:
        yield server


@pytest.fixture(autouse=True)
def fresh(storage: Storage) -> None:
    storage.status = 201
    storage.open.set()
    storage.asked.clear()
    storage.puts.clear()


def test_the_file_is_uploaded_and_its_url_is_the_answer(uploading: Server, storage: Storage) -> None:
    answer = uploading.predict(FILE | {"on_error": "skip"})
    assert answer["output"] == f"{storage.url}/vectors.parquet"
    [(path, kind, content)] = storage.puts
    assert path == "/files/vectors.parquet" and "parquet" in kind
    table = pq.read_table(io.BytesIO(content))
    assert table["id"].to_pylist() == [1, 3]
    metrics = answer["metrics"]
    assert (metrics["rows"], metrics["skipped"]) == (2, 1) and metrics["token_count"] > 10
    assert table.schema.metadata[b"model"].decode() == metrics["model"]
    assert "file, line 2: text: it is a number; give a string; skipped" in answer["logs"]


@pytest.mark.parametrize("status", [403, 500])
def test_a_refused_upload_fails_the_prediction_and_nothing_else(
    uploading: Server, storage: Storage, status: int
) -> None:
    storage.status = status
    answer = uploading.predict(FILE | {"on_error": "skip"})
    assert answer["status"] == "failed" and "output" not in answer
    assert f"upload returned status {status}" in answer["error"]
    storage.status = 200
    assert uploading.predict(FILE | {"on_error": "skip"})["status"] == "succeeded"


@pytest.mark.fuzz
def test_single_requests_are_answered_while_a_file_is_uploaded(uploading: Server, storage: Storage) -> None:
    """The file is tens of megabytes, which in an object would be inlined and hold up everybody."""
    storage.open.clear()
    lines = "%0A".join(f"line {i}" for i in range(5_000))
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(uploading.predict, {"file": f"data:text/plain,{lines}"})
        assert storage.asked.wait(120), "the upload begins"
        for i in range(20):
            assert uploading.predict({"text": f"beside it {i}"}, timeout_s=5)["status"] == "succeeded"
        assert not running.done()
        storage.open.set()
        assert running.result()["output"] == f"{storage.url}/vectors.parquet"
    assert len(storage.puts[0][2]) > 10_000_000


def test_the_command_names_the_url_of_a_stored_file(uploading: Server, storage: Storage, tmp_path: Path) -> None:
    command = [sys.executable, "scripts/predict.py", "--url", uploading.url, "-o", str(tmp_path / "a")]
    result = subprocess.run([*command, "-i", "file=data:text/plain,one"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert f"the server has stored the file; download it from {storage.url}/vectors.parquet" in result.stderr
