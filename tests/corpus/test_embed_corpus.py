"""`scripts.embed_corpus` as a process: killed, interrupted, on two devices, and its memory."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from container.make_openapi import ROOT
from corpus.shards import shards_path
from tests.support import corpora, interrupted_runs

Process = subprocess.Popen[str]
OPTIONS = ["--weights", "small", "--window", "16"]


def start(module: str, *arguments: str | Path) -> Process:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(module: str, *arguments: str | Path) -> str:
    """Run it to its end and return what it printed."""
    process = start(module, *arguments)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    return out


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def stopped(stop: Callable[[Process], None], corpus: Path, output: Path, *options: str) -> tuple[int, str]:
    """Start a run, stop it after a few blocks, and return its exit status and what it said."""

    def attempt() -> tuple[int, str]:
        process = start("scripts.embed_corpus", corpus, output, *OPTIONS, *options)
        wait_until(lambda: (shards_path(output) / "00000003").exists() or process.poll() is not None)
        with suppress(ProcessLookupError, FileNotFoundError, StopIteration):
            stop(process)
        _, err = process.communicate(timeout=900)
        return process.returncode, err

    status, err = attempt()
    for _ in range(9):
        if status:
            break
        output.unlink()  # it was whole before it could be stopped
        status, err = attempt()
    return status, err


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 texts, of which the last 100 repeat the first."""
    texts = [*corpora.texts(300), *corpora.texts(100)]
    return corpora.write(tmp_path_factory.mktemp("corpus") / "a.jsonl.gz", [{"text": text} for text in texts])


@pytest.fixture(scope="module")
def whole(corpus: Path) -> Path:
    """The output of an uninterrupted run."""
    run("scripts.embed_corpus", corpus, corpus.with_name("whole.parquet"), *OPTIONS)
    return corpus.with_name("whole.parquet")


@pytest.mark.fuzz
def test_killed_twenty_times_the_output_is_the_same(corpus: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.parquet"
    left = json.loads(run("tests.support.interrupted_runs", "kill", "1", "20", corpus, output, *OPTIONS))
    print("shards that each killed run left:", left)
    assert len(left) == 20 and len(set(left)) > 1, "killed at several stages"
    outputs = sorted(tmp_path.glob("v.parquet*"))
    assert len(outputs) >= 2
    assert all(path.read_bytes() == whole.read_bytes() for path in outputs)
    assert output in outputs and not shards_path(output).exists()
    assert pq.read_table(output)["id"].to_pylist() == list(range(1, 401)), "no text twice, none lost"


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["v.parquet", "v"])
def test_killed_again_and_again_an_update_is_the_same_and_the_output_whole_meanwhile(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    rows = [{"id": str(i), "text": text} for i, text in enumerate(corpora.texts(320))]
    source, form = corpora.write(tmp_path / "a.jsonl", rows), "/" if name == "v" else ""
    before, output = tmp_path / f"before-{name}", tmp_path / name
    options = [*OPTIONS, "--id", "id"]
    run("scripts.embed_corpus", source, f"{before}{form}", *options)
    corpora.write(source, [{**row, "text": f"now {i}"} if i % 4 else row for i, row in enumerate(rows)])
    more = [*options, "--update", "--remove"]
    left = json.loads(
        run("tests.support.interrupted_runs", "update", before, "1", "7", source, f"{output}{form}", *more)
    )
    print("shards that each killed update left:", left)
    outputs = [interrupted_runs.content(path) for path in sorted(tmp_path.glob(f"{name}*")) if path != before]
    assert len(left) == 7 and len(outputs) >= 2 and all(each == outputs[0] for each in outputs)
    assert sorted(path.name for path in tmp_path.glob("*.parts")) == []


def test_control_c_keeps_what_is_done(corpus: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.parquet"
    status, err = stopped(lambda process: process.send_signal(signal.SIGINT), corpus, output)
    assert status == 130 and "Interrupted; what is done is kept: run the same again to go on." in err
    run("scripts.embed_corpus", corpus, output, *OPTIONS)
    assert output.read_bytes() == whole.read_bytes()


def engine_process(parent: int) -> int:
    """Return one of the processes that a run has started for its devices."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes())


@pytest.mark.fuzz
def test_two_devices(corpus: Path, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "v.parquet"
    status, err = stopped(
        lambda process: os.kill(engine_process(process.pid), signal.SIGKILL), corpus, output, "--devices", "2"
    )
    assert status == 1
    assert "an engine's process ended (exit code -9; -9 is most often a lack of memory); what is done is kept" in err
    run("scripts.embed_corpus", corpus, output, *OPTIONS, "--devices", "2")
    actual, expected = (
        np.array(pq.read_table(path)["embedding"].combine_chunks().values).reshape(400, -1) for path in (output, whole)
    )
    np.testing.assert_allclose(actual, expected, atol=1e-6)


@pytest.mark.fuzz
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Ten times the texts, each with 20 kB to carry: 70 MB more, which would be seen if it was kept."""
    peaks = []
    for count in (400, 4000):
        rows = [{"text": str(i % 500), "load": f"{i:08d}" * 2_500} for i in range(count)]
        source = tmp_path / f"{count}.parquet"
        with pq.ParquetWriter(source, pa.schema([("text", pa.string()), ("load", pa.string())])) as writer:
            for at in range(0, count, 100):
                writer.write_table(pa.Table.from_pylist(rows[at : at + 100]))
        options = ["--weights", "small", "--window", "50", "--task", "none", "--carry", "load"]
        peaks.append(int(run("tests.support.interrupted_runs", "peak", source, tmp_path / f"v{count}.jsonl", *options)))
    print("peaks in MiB:", [peak >> 10 for peak in peaks])
    assert peaks[1] < 1.1 * peaks[0]


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    process = start("scripts.embed_corpus", tmp_path / "a.txt", tmp_path / "v.npy", "--title", "head", "--task", "none")
    _, err = process.communicate(timeout=900)
    assert process.returncode == 1
    assert err == (
        "embed_corpus: title: task 'none' has no place for a title; leave it out or use task 'retrieval_document'\n"
    )
