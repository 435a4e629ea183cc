"""Corpora on a Ray cluster: make test-ray, which installs Ray (requirements/ray.txt). make test skips them."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import s3fs

import encoding
from container.make_openapi import ROOT
from corpus.inputs import Inputs
from corpus.rows import BadRow, Columns, CorpusError
from engine.packed import PackedEngine
from tests.support import corpora
from tests.support.s3 import KEYS, failing_s3
from tests.support.updates import same
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


def embedded(source: Path, columns: Columns, options: Options, skip: bool = False) -> tuple[pa.Table, list[Any]]:
    """Return the vectors of a corpus as tasks read it and an actor embeds it, and the rows without a vector."""
    from corpus.cluster import ActorJob, Embedder, read
    from corpus.cluster_folder import unpacked
    from corpus.sorted_keys import NO_KEYS

    inputs, job = Inputs([str(source)], columns, skip=skip), ActorJob("small", options, skip, 20, "float32")
    inputs.settle_ids()
    actor = Embedder(job, inputs, [], NO_KEYS)
    blocks = [actor(block) for file in inputs.files for block in read(pa.table({"name": [file.name]}), job, inputs)]
    skipped = [row for block in blocks for row in json.loads(block["skipped"][0].as_py())]
    tables = [unpacked(block["rows"][0]) for block in blocks]
    return pa.concat_tables([table for table in tables if table.num_rows]), skipped


def test_an_actor_keeps_rows_vectors_and_chunks_together(small: Path, tmp_path: Path) -> None:
    texts = ["one", "two " * 60, "one", "three"]
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "text": texts}), tmp_path / "a.parquet")
    output, _ = embedded(tmp_path / "a.parquet", COLUMNS, Options(chunking=Chunking(32)))
    assert output["id"].to_pylist() == ["a", *["b"] * (len(output) - 3), "c", "d"] and len(output) > 4
    cut = [row["text"][row["start"] : row["end"]] for row in output.to_pylist()]
    np.testing.assert_allclose(array(output), vectors(PackedEngine(small, "cpu"), cut), atol=1e-6)


def test_a_row_without_a_vector_is_named_or_listed(tmp_path: Path) -> None:
    strict, path = Options(truncate="none"), tmp_path / "a.jsonl"
    corpora.write(path, [{"id": 1, "text": "one"}, {"id": 2, "text": None}, {"id": 3, "text": "w " * 3000}])
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 2: text: it is null; give a text, or leave it out\. M"):
        embedded(path, COLUMNS, strict)
    output, skipped = embedded(path, COLUMNS, strict, skip=True)
    assert output["id"].to_pylist() == [1] and [row[0] for row in skipped] == [2, 3]
    corpora.write(path, [{"id": 1, "text": "one"}, {"id": 3, "text": "w " * 3000}])
    with pytest.raises(CorpusError, match=r"a\.jsonl, line 2: the text has 3,010 tokens"):
        embedded(path, COLUMNS, strict)


def test_types_and_columns_within_columns_are_kept(tmp_path: Path) -> None:
    when = pa.array([1, None, -1], pa.int64()).cast(pa.timestamp("ns", "Europe/Vienna"))
    pages = pa.array([{"body": "one", "n": 1}, {"body": None, "n": 2}, {"body": "two", "n": 3}])
    table = pa.table({"page": pages, "key": pa.array([1 << 63, 1, 2], pa.uint64()), "when": when})
    pq.write_table(table, tmp_path / "a.parquet")
    output, _ = embedded(tmp_path / "a.parquet", Columns("page.body", id="key", carry_all=True), Options(), skip=True)
    assert output["id"].equals(table["key"].take([0, 2])) and output["when"].equals(table["when"].take([0, 2]))
    assert output["page"].to_pylist() == pages.take([0, 2]).to_pylist()
    assert embedded(tmp_path, Columns("page.body"), Options(), skip=True)[0]["id"].to_pylist() == [
        "a.parquet#1",
        "a.parquet#3",
    ]
    facts = ["token_count", "truncated", "prompted"]
    assert output.schema.names == ["id", "embedding", *facts, "page", "key", "when", "text_hash"]


def test_a_folder_is_whole_whenever_its_last_steps_are_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from corpus.cluster_folder import ClusterFolder, VectorFile, Written

    def made(folder: ClusterFolder, *names: str) -> list[Written]:
        files = [VectorFile(folder.path(folder.run), name) for name in names]
        for i, file in enumerate(files):
            with file:
                file.write(pa.table({"id": [i], "embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))}))
        return [file.written() for file in files]

    new = ["new.parquet", "p=2/new.parquet"]
    for steps in itertools.count():
        out, left = tmp_path / str(steps), itertools.count(steps, -1)
        first = ClusterFolder(str(out), {})
        assert first.begin(update=False) == 0
        assert first.finish(made(first, "old.parquet", "p=1/old.parquet"), [BadRow(1, "bad")], {}) == 2
        folder = ClusterFolder(str(out), {"run": 2})
        folder.begin(update=True)
        with suppress(InterruptedError), VectorFile(folder.path(folder.run), "half.parquet") as half:
            half.write(pq.read_table(out / "old.parquet"))
            raise InterruptedError
        written = made(folder, *new)
        with monkeypatch.context() as patch:
            for name in ("mv", "pipe_file", "rm_file", "rm"):
                patch.setattr(folder._files, name, partial(until_killed, left, getattr(folder._files, name)))
            with suppress(KeyboardInterrupt):
                folder.finish(written, [], {})
        is_whole = next(left) >= 0
        assert all((out / name).exists() for name in json.loads((out / "_SUCCESS").read_text())["files"])
        again = ClusterFolder(str(out), {"run": 2})
        if not again.begin(update=True) and again.listed != new:
            assert again.finish([], [], {}) == 2, "what was written is not written again"
        assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {*new, "_SUCCESS"}
        if is_whole:
            break
    assert steps > 5


def test_an_id_that_is_there_twice_is_named_unless_it_is_of_chunks(tmp_path: Path) -> None:
    from corpus.cluster_folder import ClusterFolder, VectorFile

    folder = ClusterFolder(str(tmp_path), {})
    folder.begin(update=False)
    files = [VectorFile(folder.path(folder.run), f"{name}.parquet") for name in "ab"]
    for file, ids, starts in zip(files, (["x", "y", "y", "z"], ["u", "z"]), ([0, 0, 5, 0], [0, 3]), strict=True):
        vectors = pa.array([[1.0, 2.0]] * len(ids), pa.list_(pa.float32(), 2))
        with file:
            file.write(pa.table({"id": ids, "embedding": vectors, "start": starts}))
    with pytest.raises(CorpusError, match=r"id: 'z' is there twice, .* told by their ids; make them unique, or"):
        folder.finish([file.written() for file in files], [], {})
    assert names(tmp_path) and "_SUCCESS" not in names(tmp_path)


def until_killed(left: Iterator[int], true: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Do a step, while some are left."""
    if next(left) <= 0:
        raise KeyboardInterrupt
    return true(*arguments, **options)


def actors(mark: str, least_pages: int = 0, name: bytes = b"ray::MapWorker") -> list[int]:
    """Return the ids of Ray's processes of a name that have `mark` in their environment, and so much memory."""
    processes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            pages = int((process / "statm").read_text().split()[1])
            if (process / "cmdline").read_bytes().startswith(name) and pages >= least_pages:
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
        assert process.poll() is None and time.monotonic() < deadline, process.poll() and process.communicate()
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of one node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


def run(*arguments: str) -> str:
    """Run a command to its end, and return its last line if it fails."""
    _, err = (process := started("none", *arguments)).communicate(timeout=300)
    return (err.split("\n")[-2] or err) if process.returncode else ""


def lake(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Write rows into files of four formats and different schemas, with a bad row and a damaged file."""
    parts = [rows[i::4] for i in range(4)]
    for k, name in enumerate(("lang=de/a.jsonl.gz", "lang=de/b.parquet", "lang=fr/c.arrow", "d.csv")):
        path, bad = folder / name, {"id": f"bad{k}", "text": " ", "meta": {"url": "u"}, "n": 0}
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = ["id", "text", *(["meta"] if k < 3 else []), *(["n"] if k in (1, 2) else [])]
        part = [{column: row[column] for column in columns} for row in (*parts[k], bad)]
        corpora.write(path, part)
        if k == 1:
            table = pq.read_table(path)
            pq.write_table(table.set_column(3, "n", table["n"].cast(pa.int16())), path)
    (folder / "lang=fr/e.parquet").write_bytes((folder / "lang=de/b.parquet").read_bytes()[:-100])
    return str(folder)


def test_a_cluster_makes_what_one_machine_makes(cluster: Any, tmp_path: Path) -> None:
    rows = [{"id": f"k{i}", "text": text, "meta": {"url": f"u{i}"}, "n": i} for i, text in enumerate(corpora.texts(90))]
    options = ["--weights", "small", "--id", "id", "--carry", "meta.url,n", "--partition-by", "lang"]
    options += ["--on-error", "skip", "--window", "16"]
    hive = pyarrow.dataset.partitioning(pa.schema([("lang", pa.string())]), flavor="hive")
    after = [{**rows[7], "text": "another text"}, {**rows[9], "meta": {"url": "v"}}, *rows[20:]]
    after.append({"id": "new", "text": "a new text", "meta": {"url": "u"}, "n": 1 << 14})
    here, there = tmp_path / "here", tmp_path / "there"
    for now, update in ((rows, []), (after, ["--update"]), (after[:60], ["--update", "--remove"])):
        source = lake(tmp_path / "in", now)
        assert run(source, f"{here}/", *options, *update) == ""
        relative = os.path.relpath(there, ROOT)
        assert run(source, relative, *options, *update, "--ray", cluster.address, "--workers", "2") == ""
        same(*(pq.read_table(out, partitioning=hive).sort_by("id") for out in (there, here)))
        skipped = [sorted((out / "_skipped.jsonl").read_text().splitlines()) for out in (there, here)]
        assert skipped[0] == skipped[1] and "lang=fr/e.parquet" in skipped[0][-1]
        files = json.loads((there / "_SUCCESS").read_text())["files"]
        assert {*files, "_SUCCESS", "_skipped.jsonl"} == set(names(there)), "nothing else stays"
        if update == ["--update"]:
            here, there = there, here  # either updates what the other made
    os.remove(tmp_path / "in/lang=fr/e.parquet")
    corpora.write(tmp_path / "in/z.parquet", [{"id": 1, "text": "a whole number", "meta": {"url": "u"}, "n": 1}])
    refused = run(source, f"{tmp_path}/other/", *options, "--ray", cluster.address)
    assert f"{tmp_path}/in/z.parquet: id: its type is int64, and string in {tmp_path}/in/" in refused


def names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]


def test_what_a_cluster_does_not_do_is_said_at_once(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one"]}), tmp_path / "a.parquet")
    single = run(str(tmp_path / "a.parquet"), f"{tmp_path}/v.lance", "--ray")
    assert single.endswith(
        "v.lance: with --ray the output is a folder of .parquet files; name a folder, ending with /, "
        "which databases read as they do a file"
    )
    assert run("-", "v/", "--format", "csv", "--ray").endswith(
        "-: only this process reads standard input; with --ray name files"
    )


def test_a_cluster_reads_and_updates_s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"id": i, "text": text} for i, text in enumerate(corpora.texts(40))]
    with failing_s3() as server:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": server.url}.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        options = ["--weights", "small", "--id", "id", "--window", "16", "--ray"]
        for now, update in ((rows, []), ([*rows[10:30], {"id": 99, "text": "new"}], ["--update"])):
            files.put(str(corpora.write(tmp_path / "a.jsonl", now)), "bucket/in/a.jsonl")
            server.method, server.path, server.failures = "PUT", ".parquet", ["503", "cut"]
            assert run("s3://bucket/in/*.jsonl", "s3://bucket/out", *options, *update) == ""
        files.invalidate_cache()
        found = {path.removeprefix("bucket/out/") for path in files.find("bucket/out")}
        assert found == {*json.loads(files.cat("bucket/out/_SUCCESS"))["files"], "_SUCCESS"}
        table = pq.read_table("bucket/out", filesystem=files).sort_by("id")
        assert table["id"].to_pylist() == [*range(40), 99]


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
    assert not list(tmp_path.glob("out/**/*.parquet")), "not done yet"
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
    assert run(*arguments) == (
        f"embed_corpus: {tmp_path}/a.parquet, row 2: text: it is null; give a text, or leave it out. Mend it, or "
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
    wait_until(lambda: any(map(is_whole, out.glob("_run-*/*.parquet"))), process)
    for each in processes_of(mark):
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    process.communicate(timeout=60)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("_run-*/*.parquet")}
    [folder] = out.glob("_run-*")
    (folder / "cut.parquet").write_bytes(b"PAR1 half a file of a machine that was lost")
    assert not pyarrow.dataset.dataset(out).files, "nothing shows before it is whole"
    command = [str(source), str(out), *options]
    assert run(*command) == ""
    kept = [name for name, at in before.items() if (out / name).exists() and (out / name).stat().st_mtime_ns == at]
    assert kept and {*names(out)} == {*json.loads((out / "_SUCCESS").read_text())["files"], "_SUCCESS"}
    whole = pq.read_table(out).sort_by("id")
    assert whole["id"].to_pylist() == list(range(1800)), "none lost, none twice"
    assert run(*command).endswith("it is there already; name another output, or update it (--update)")

    rows[7]["text"], rows[9]["url"] = "another text", "another url"
    written(source, [*rows[:500], *rows[501:], {"id": 5000, "text": "new", "url": "u"}])
    assert run(*command, "--update", "--remove") == ""
    after = pq.read_table(out).sort_by("id")
    assert after["id"].to_pylist() == [*range(500), *range(501, 1800), 5000]
    assert after["url"][9].as_py() == "another url" and not after["embedding"][7].equals(whole["embedding"][7])
    alike = [i for i in range(1800) if i not in (7, 500)]
    assert after.take([i - (i > 500) for i in alike])["embedding"].equals(whole.take(alike)["embedding"])


def test_a_fleet_that_loses_machines_loses_no_row(tmp_path: Path) -> None:
    """Nodes of Ray, each with processes of its own, are killed: while files are looked into, in a run and an update."""
    from ray.cluster_utils import Cluster

    rows = [{"id": i, "text": text} for i, text in enumerate(corpora.texts(3000))]
    after = [*rows[1000:], *({"id": 3000 + i, "text": f"{text} new"} for i, text in enumerate(corpora.texts(1500)))]
    out, nodes = tmp_path / "out", dict[str, Any]()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})

    def add() -> None:
        """Add a node, which like a machine has its own folder of what it was sent: one that dies leaves half of it."""
        mark = uuid.uuid4().hex
        nodes[mark] = cluster.add_node(num_cpus=2, env_vars={"CORPUS_RUN": mark}, runtime_env_dir_name=mark)

    def kill(process: "subprocess.Popen[str]", **where: Any) -> None:
        """Kill a node as soon as it does something, and add another."""
        wait_until(lambda: any(actors(mark, **where) for mark in nodes), process)
        lost = next(mark for mark in nodes if actors(mark, **where))
        cluster.remove_node(nodes.pop(lost), allow_graceful=False)
        add()

    try:
        for _ in range(2):
            add()
        options = ["--weights", "small", "--id", "id", "--window", "25", "--workers", "2", "--file-mb", "1"]
        for now, update, count in ((rows, [], 3000), (after, ["--update"], 4500)):
            source = written(tmp_path / "in", now)
            process = started("none", str(source), str(out), *options, *update, "--ray", cluster.address)
            if not update:
                kill(process, name=b"ray::survey_part")
            kill(process, least_pages=80_000)  # engines are loaded
            _, err = process.communicate(timeout=300)
            assert process.returncode == 0, err
            assert pq.read_table(out)["id"].sort().to_pylist() == list(range(count)), "none lost, none twice"
            assert json.loads((out / "_SUCCESS").read_text())["rows"] == count
    finally:
        cluster.shutdown()
