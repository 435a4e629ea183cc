"""Two servers and a corpus's run on one machine take nothing from each other. TWO_SERVERS_SECONDS makes it longer."""

import base64
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

import encoding
from container import probe
from container.make_openapi import ROOT
from container.prediction_folders import FOLDER, GRACE_S, PredictionFolders
from container.server import Server, running_server
from tests.support import corpora
from tests.support.servers import STUB, eventually, order

SECONDS = float(os.environ.get("TWO_SERVERS_SECONDS", "1"))
# The sweep of this process believes that so little is left of the time which others have to answer.
LEFT_S = 4.0
# One batch takes so long; after a minute the server would call itself unwell.
LONG_S = LEFT_S + min(45, 1 + SECONDS / 4)
TEXTS = corpora.texts(2_048)
"""As many as make an answer that goes through a file."""


@pytest.fixture
def fault(tmp_path: Path) -> Path:
    return tmp_path / "fault"


@pytest.fixture
def second(fault: Path) -> Iterator[Server]:
    with running_server("small", settings=STUB | {"FAULT": str(fault)}) as running:
        yield running


def many(server: Server) -> np.ndarray:
    """Return vectors of a request and an answer that both go through files; the id is the same on both servers."""
    inputs = {"texts": [*TEXTS[:-1], f"{TEXTS[-1]}{' ' * 7_000_000}"]}
    answer = httpx.put(f"{server.url}/predictions/many", json={"id": "many", "input": inputs}, timeout=600).json()
    assert answer["status"] == "succeeded", answer
    return encoding.decode(answer)[:-1]


def file(server: Server) -> np.ndarray:
    """Return vectors that come back in a file."""
    content = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
    inputs = {"file": f"data:;base64,{base64.b64encode(content).decode()}", "file_format": "jsonl"}
    answer = server.predict(inputs)
    assert answer["status"] == "succeeded", answer
    table = pq.read_table(io.BytesIO(base64.b64decode(answer["output"].partition(",")[2])))
    return np.array(table["embedding"].to_pylist(), dtype=np.float32)[:-1]


def corpus(folder: Path, rows: int) -> list[Any]:
    """Return the ids of a run's output."""
    source, target = folder / "texts.jsonl", folder / "vectors.parquet"
    corpora.write(source, [{"id": i, "text": f"{i} {text}"} for i, text in enumerate(corpora.texts(rows))])
    options = ["--id", "id", "--weights", "small"]
    command = [sys.executable, "-m", "scripts.embed_corpus", str(source), str(target), *options]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1_200)
    assert result.returncode == 0, result.stderr
    return list(pq.read_table(target)["id"].to_pylist())


@pytest.mark.fuzz
def test_two_servers_and_a_corpus_lose_nothing(server: Server, second: Server, fault: Path, tmp_path: Path) -> None:
    expected, rows = many(server), 200 * round(SECONDS)
    swept = PredictionFolders()
    done: list[str] = []
    ended = threading.Event()

    def repeat(ask: Callable[[Server], np.ndarray], one: Server) -> None:
        while not ended.is_set():
            np.testing.assert_allclose(ask(one), expected, atol=1e-5)
            done.append(ask.__name__)

    def sweep() -> None:
        while not ended.wait(0.2):
            swept.sweep(time.time() + GRACE_S - LEFT_S)

    order(fault, f"sleep {LONG_S}")
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(repeat, ask, one) for ask in (many, file) for one in (server, second)]
        asked += [pool.submit(sweep)]
        embedded = pool.submit(corpus, tmp_path, rows)
        time.sleep(LONG_S + SECONDS)
        ended.set()
        for each in asked:
            each.result()
        assert embedded.result() == list(range(rows))
    print(f"nothing lost: {done.count('many')} large predictions, {done.count('file')} files, a corpus of {rows} rows")
    for one in (server, second):
        assert probe.status(one.url) == "READY"
        many(one)


def test_a_killed_server_leaves_a_folder_that_the_other_removes(fault: Path) -> None:
    with running_server("small", settings=STUB | {"FAULT": str(fault)}) as killed, ThreadPoolExecutor(1) as pool:
        order(fault, "sleep 60")
        url = f"{killed.url}/predictions/killed"
        asked = pool.submit(httpx.put, url, json={"id": "killed", "input": {"text": "a"}}, timeout=60)
        eventually(lambda: not fault.exists(), "the prediction runs")
        other, later = PredictionFolders(), time.time() + 3_600
        other.sweep(later)
        assert (FOLDER / "killed" / "outputs").is_dir()
        os.killpg(killed.process.pid, 9)
        assert isinstance(asked.exception(60), httpx.TransportError)
        eventually(lambda: other.sweep(later) > -1 and not (FOLDER / "killed").exists(), "what it left is removed")
