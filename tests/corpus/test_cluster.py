"""Corpora on a Ray cluster: make test-ray, which installs Ray (requirements/ray.txt). make test skips them."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import encoding
from container.make_openapi import ROOT
from corpus.rows import Columns, CorpusError
from engine.packed import PackedEngine
from tests.support import corpora
from texts.chunking import Chunking
from texts.options import Options

pytestmark = pytest.mark.ray

COLUMNS = Columns(id="id", carried=("text",))


def vectors(engine: PackedEngine, texts: list[str]) -> np.ndarray:
    """Return unit vectors of documents, each computed alone."""
    rows = [engine.embed([engine.tokenizer.encode(["title: none | text: "], [text])[0].ids]) for text in texts]
    return encoding.cut(np.concatenate(rows), 768, normalize=True)


def array(table: pa.Table) -> np.ndarray:
    return np.stack(table["embedding"].to_numpy())


def test_an_actor_keeps_rows_vectors_and_chunks_together(small: Path) -> None:
    from corpus.cluster import ActorJob, Embedder

    texts = ["one", "two " * 60, "one", "three"]
    table = pa.table({"id": ["a", "b", "c", "d"], "text": texts, "path": ["f"] * 4})
    job = ActorJob("small", Options(chunking=Chunking(32)), COLUMNS, skip=False, dtype="float32")
    output = Embedder(job)(table)
    assert output["id"].to_pylist() == ["a", *["b"] * (len(output) - 3), "c", "d"] and len(output) > 4
    cut = [row["text"][row["start"] : row["end"]] for row in output.to_pylist()]
    np.testing.assert_allclose(array(output), vectors(PackedEngine(small, "cpu"), cut), atol=1e-6)


def test_an_actor_names_or_keeps_unfit_rows() -> None:
    from corpus.cluster import ActorJob, Embedder

    table = pa.table({"id": [1, 2, 3], "text": ["one", None, "w " * 3000], "path": ["s3://bucket/a.parquet"] * 3})
    strict = Options(truncate="none")
    with pytest.raises(
        CorpusError, match=r"s3://bucket/a\.parquet, id 2: text: it is null; give a text, or leave it out"
    ):
        Embedder(ActorJob("small", strict, COLUMNS, skip=False))(table)
    output = Embedder(ActorJob("small", strict, COLUMNS, skip=True))(table).to_pylist()
    assert [row["embedding"] is None for row in output] == [False, True, True]
    assert [row["id"] for row in output] == [1, 2, 3] and output[0]["problem"] is None
    assert output[2]["problem"].startswith("the text has 3,010 tokens")


def test_an_actor_keeps_types_or_refuses_them_at_once() -> None:
    from corpus.cluster import ActorJob, Embedder

    when = pa.array([1, None, -1], pa.int64()).cast(pa.timestamp("ns", "Europe/Vienna"))
    ids, none = pa.array([1 << 63, 1, 2], pa.uint64()), pa.array([None, "f", None]).dictionary_encode()
    table = pa.table({"id": ids, "text": ["one", None, "two"], "when": when, "none": none, "path": ["f"] * 3})
    columns = Columns(id="id", carried=("when", "none"))
    output = Embedder(ActorJob("small", Options(), columns, skip=True))(table)
    assert output["id"].combine_chunks().equals(ids.take(pa.array([0, 2, 1])))
    assert output["when"].combine_chunks().equals(when.take(pa.array([0, 2, 1])))
    assert output["none"].to_pylist() == [None, None, "f"]
    with pytest.raises(CorpusError, match=r"f: when: its type is timestamp.*; ids are whole numbers or strings: write"):
        Embedder(ActorJob("small", Options(), Columns(id="when"), skip=True))(table)


def test_an_actor_finds_columns_within_columns_and_carries_all() -> None:
    from corpus.cluster import ActorJob, Embedder

    pages = [{"body": "one", "url": "u1"}, {"body": "two", "url": "u2"}]
    table = pa.table({"page": pages, "n": [1, 2], "path": ["f"] * 2})
    columns = Columns("page.body", id="page.url", carry_all=True)
    output = Embedder(ActorJob("small", Options(), columns, skip=False))(table)
    assert output["id"].to_pylist() == ["u1", "u2"]
    assert output.select(["page", "n"]).equals(table.select(["page", "n"]))


def test_only_parquet_goes_to_a_cluster(tmp_path: Path) -> None:
    from corpus.cluster import parquet_files

    for name in ("b.parquet", "a.parquet", "_SUCCESS"):
        (tmp_path / name).touch()
    assert parquet_files([str(tmp_path)]) == [f"{tmp_path}/a.parquet", f"{tmp_path}/b.parquet"]
    (tmp_path / "c.jsonl").touch()
    with pytest.raises(CorpusError, match=r"c\.jsonl: with --ray only \.parquet is read; name the others with a glob"):
        parquet_files([str(tmp_path)])


def test_all_batches_of_a_cluster_have_the_same_columns() -> None:
    from corpus.cluster import ActorJob, Embedder

    embedder = Embedder(ActorJob("small", Options(), COLUMNS, skip=True))
    tables = [
        embedder(pa.table({"id": pa.array([1, 2], pa.int32()), "text": texts, "path": ["f"] * 2}))
        for texts in (["one", "two"], ["one", " "], ["", " "])
    ]
    assert tables[0].schema.equals(tables[1].schema, check_metadata=True)
    assert tables[0].schema.equals(tables[2].schema, check_metadata=True)
    assert [table["token_count"].null_count for table in tables] == [0, 1, 2]
    facts = ["token_count", "truncated", "prompted"]
    assert tables[0].schema.names == ["id", "embedding", *facts, "problem", "text", "text_hash"]
    assert tables[0]["id"].type == pa.int32()
    for table in tables:
        table.validate(full=True)
        pq.write_table(table, pa.BufferOutputStream())


def test_rows_without_ids_and_columns_of_the_outputs_names_are_refused() -> None:
    from corpus.cluster import ActorJob

    with pytest.raises(CorpusError, match="id: with --ray rows are told by their ids; name their column with --id"):
        ActorJob("small", Options(), Columns(), skip=False)
    with pytest.raises(CorpusError, match="problem: with --ray this column has another use; rename it in the input"):
        ActorJob("small", Options(), Columns(id="id", carried=("problem",)), skip=False)


def actors(mark: str, least_pages: int = 0) -> list[int]:
    """Return the ids of the actors' processes that have `mark` in their environment, and so much memory."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            pages = int((process / "statm").read_text().split()[1])
            if (process / "cmdline").read_bytes().startswith(b"ray::MapWorker") and pages >= least_pages:
                processes += [int(process.name)] if mark.encode() in (process / "environ").read_bytes() else []
        except OSError:
            continue
    return processes


def started(mark: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start a run that has `mark` in its environment."""
    command = [sys.executable, "-m", "scripts.embed_corpus", *arguments]
    environment = os.environ | {"CORPUS_RUN": mark}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def wait_until(holds: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 200
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def test_a_worker_killed_in_mid_run_leaves_the_result_whole(small: Path, tmp_path: Path) -> None:
    texts = corpora.texts(3000)
    rows = [{"id": i, "text": text} for i, text in enumerate(texts)]
    for k in range(6):
        (tmp_path / f"in/part={k % 2}").mkdir(parents=True, exist_ok=True)
        corpora.write(tmp_path / f"in/part={k % 2}" / f"{k}.parquet", rows[k * 500 : (k + 1) * 500])
    mark = uuid.uuid4().hex
    options = ["--weights", "small", "--id", "id", "--window", "25", "--ray", "--workers", "2", "--carry", "part"]
    arguments = [f"{tmp_path}/in/**/*.parquet", (tmp_path / "out").as_uri(), *options]
    process = started(mark, *arguments)
    wait_until(lambda: len(actors(mark)) >= 2, process)
    time.sleep(4)  # its engine is loaded, and it has computed some
    assert not list(tmp_path.glob("out/*.parquet")), "not done yet"
    os.kill(actors(mark)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    table = pq.read_table(tmp_path / "out").sort_by("id")
    assert table["id"].to_pylist() == list(range(3000)), "none lost, none twice"
    assert table["part"].to_pylist() == [str(i // 500 % 2) for i in range(3000)]
    some = list(range(0, 3000, 100))
    alone = vectors(PackedEngine(small, "cpu"), [texts[i] for i in some])
    np.testing.assert_allclose(array(table)[some], alone, atol=1e-6)


def test_a_bad_row_stops_a_cluster_in_one_sentence(tmp_path: Path) -> None:
    corpora.write(tmp_path / "a.parquet", [{"id": 7, "text": "one"}, {"id": 8, "text": None}])
    arguments = [str(tmp_path / "a.parquet"), str(tmp_path / "out"), "--weights", "small", "--id", "id", "--ray"]
    command = [sys.executable, "-m", "scripts.embed_corpus", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"embed_corpus: {tmp_path}/a.parquet, id 8: text: it is null; give a text, or leave it out. Mend it, or "
        "skip such rows (on-error skip)"
    )


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as six files, each of which becomes a file of its own in the output."""
    folder.mkdir(exist_ok=True)
    for k in range(6):
        corpora.write(folder / f"{k}.parquet", rows[k * len(rows) // 6 : (k + 1) * len(rows) // 6])
    return folder


def is_whole(path: Path) -> bool:
    with suppress(pa.ArrowInvalid):
        return bool(pq.read_metadata(path).num_rows)
    return False


def processes_of(mark: str) -> list[int]:
    """Return the ids of all processes that have `mark` in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found += [int(process.name)] if mark.encode() in (process / "environ").read_bytes() else []
    return found


def test_an_interrupted_run_goes_on_and_an_update_computes_only_what_is_new(tmp_path: Path) -> None:
    rows = [{"id": i, "text": text, "url": "u"} for i, text in enumerate(corpora.texts(1800))]
    source, out, mark = written(tmp_path / "in", rows), tmp_path / "out", uuid.uuid4().hex
    options = ["--weights", "small", "--id", "id", "--carry", "url", "--window", "60", "--file-mb", "1", "--ray"]
    process = started(mark, str(source), str(out), *options)
    wait_until(lambda: any(map(is_whole, out.glob("*.parquet"))), process)
    for each in processes_of(mark):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.communicate(timeout=60)
    (out / "cut.parquet").write_bytes(b"PAR1 half a file of a machine that was lost")
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    command = [sys.executable, "-m", "scripts.embed_corpus", str(source), str(out), *options]
    done = run(command)
    assert done.returncode == 0 and done.stderr.endswith("out: 1800 rows\n"), done.stderr
    kept = [path for path, at in before.items() if path.exists() and path.stat().st_mtime_ns == at]
    assert kept and out / "cut.parquet" not in kept
    whole = pq.read_table(out).sort_by("id")
    assert whole["id"].to_pylist() == list(range(1800)), "none lost, none twice"
    assert not (out / "_run.json").exists()
    assert "it is there already; name another output, or update it (--update)" in run(command).stderr

    rows[7]["text"], rows[9]["url"] = "another text", "another url"
    written(source, [*rows[:500], *rows[501:], {"id": 5000, "text": "new", "url": "u"}])
    updated = run([*command, "--update", "--remove"])
    assert updated.returncode == 0, updated.stderr
    after = pq.read_table(out).sort_by("id")
    assert after["id"].to_pylist() == [*range(500), *range(501, 1800), 5000]
    assert after["url"][9].as_py() == "another url" and not after["embedding"][7].equals(whole["embedding"][7])
    alike = [i for i in range(1800) if i not in (7, 500)]
    assert after.take([i - (i > 500) for i in alike])["embedding"].equals(whole.take(alike)["embedding"])


def test_a_fleet_that_loses_a_machine_loses_no_row(tmp_path: Path) -> None:
    """Three nodes of Ray, each with processes of its own, of which one is killed."""
    from ray.cluster_utils import Cluster

    rows = [{"id": i, "text": text} for i, text in enumerate(corpora.texts(3000))]
    source, out, mark = written(tmp_path / "in", rows), tmp_path / "out", uuid.uuid4().hex
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2, env_vars={"CORPUS_RUN": f"{mark}-{i}"}) for i in range(2)]
        options = ["--weights", "small", "--id", "id", "--window", "25", "--workers", "2", "--file-mb", "1"]
        process = started("none", str(source), str(out), *options, "--ray", cluster.address)
        wait_until(lambda: actors(mark, least_pages=80_000), process)  # its engine is being loaded
        lost = next(i for i in range(2) if actors(f"{mark}-{i}"))
        cluster.remove_node(nodes[lost], allow_graceful=False)
        _, err = process.communicate(timeout=300)
        if process.returncode:  # what Ray itself did there may be what it cannot do again
            process = started("none", str(source), str(out), *options, "--ray", cluster.address)
            _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    finally:
        cluster.shutdown()
    assert pq.read_table(out)["id"].sort().to_pylist() == list(range(3000)), "none lost, none twice"
    assert json.loads((out / "_SUCCESS").read_text())["rows"] == 3000
