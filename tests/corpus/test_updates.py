"""`--update`: tomorrow's run computes what is new, and its output is that of a run from scratch."""

import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from corpus import blocks
from corpus.destination import Destination, skipped_list
from corpus.previous import Previous
from corpus.shards import ShardFolder, shards_path
from tests.support.corpora import texts
from tests.support.updates import ROWS, Rows, Runs, changed, read, same

OUTPUTS = ["v.parquet", "v.arrow", "v.lance", "v/", "dt/"]


class Run(Runs):
    """Runs of outputs in a folder; one is partitioned, and folders have small vectors."""

    def __init__(self, folder: Path, *fixtures: Any) -> None:
        super().__init__(folder, *fixtures)
        self._folder = folder

    def __call__(self, rows: Rows, output: str, *options: str) -> str:
        options = ("--carry", "url", *options)
        if output.endswith("/"):
            options = (*options, "--dim", "128", "--precision", "int8")
        if output.endswith("dt/"):
            options = (*options, "--partition-by", "dt")
        return super().__call__(rows, f"{self._folder}/{output}", *options)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Run:
    return Run(tmp_path, monkeypatch, caplog)


@pytest.mark.parametrize("output", OUTPUTS)
def test_an_update_is_a_run_from_scratch_that_computes_only_what_is_new(run: Run, tmp_path: Path, output: str) -> None:
    assert run(ROWS, output) == "60 rows, 60 computed"
    assert run(changed(ROWS), output, "--update", "--remove") == "60 rows, 2 computed"
    assert run(changed(ROWS), f"scratch-{output}") == "60 rows, 60 computed"
    same(read(f"{tmp_path}/{output}"), read(f"{tmp_path}/scratch-{output}"))
    assert not shards_path(tmp_path / output).exists()
    assert run(changed(ROWS), output, "--update", "--remove") == "60 rows, 0 computed", "and again"
    same(read(f"{tmp_path}/{output}"), read(f"{tmp_path}/scratch-{output}"))


@pytest.mark.parametrize("output", OUTPUTS)
def test_without_remove_rows_that_are_gone_stay(run: Run, tmp_path: Path, output: str) -> None:
    run(ROWS, output)
    assert run(changed(ROWS)[30:], output, "--update") == "61 rows, 1 computed"
    run([*changed(ROWS)[30:], *ROWS[:30], ROWS[35]], f"scratch-{output}")
    after, whole = (read(f"{tmp_path}/{name}").sort_by("id") for name in (output, f"scratch-{output}"))
    same(after, whole)


@pytest.mark.parametrize("output", ["v.parquet", "v.lance", "v/"])
def test_the_list_of_bad_rows_goes_with_them(run: Run, tmp_path: Path, output: str) -> None:
    listed = Path(skipped_list(f"{tmp_path}/{output}"))
    run([*ROWS[:20], {**ROWS[20], "text": None}], output, "--on-error", "skip")
    assert listed.read_text().count("text: it is null") == 1
    assert run(ROWS[:21], output, "--update") == "21 rows, 1 computed"
    assert not listed.exists()


def test_chunks_of_a_text_stay_together(run: Run, tmp_path: Path) -> None:
    rows = [{"id": i, "text": f"{text} " * (20 if i % 3 else 1), "url": "u"} for i, text in enumerate(texts(40))]
    after = [dict(row) for row in rows]
    after[31]["text"] = "word " * 100
    options = ["--chunk", "48", "--overlap", "16"]
    for name in ("v.parquet", "v/"):
        run(rows, name, *options)
        assert run(after[::-1], name, *options, "--update", "--remove").endswith(" 1 computed")
        run(after[::-1], f"scratch-{name}", *options)
        order = [("id", "ascending"), ("start", "ascending")]
        same(*(read(f"{tmp_path}/{each}").sort_by(order) for each in (name, f"scratch-{name}")))


def test_files_without_a_change_are_not_written_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("corpus.assembly.MB", 3000)  # some 20 rows a file
    run(ROWS, "v/")
    files = sorted(tmp_path.glob("v/*.parquet"))
    before = {path.name: path.stat().st_ino for path in files}
    assert len(files) > 3
    after = [dict(row) for row in ROWS]
    after[30]["text"] = "another text"
    monkeypatch.setattr("corpus.destination.FILES_OPEN", 1)
    opened, index = list[str](), Previous.check_unique

    def indexed(previous: Previous) -> None:
        opened.extend(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink())
        index(previous)

    monkeypatch.setattr(Previous, "check_unique", indexed)
    run([*after, *({**row, "id": f"n{i}"} for i, row in enumerate(ROWS[:3]))], "v/", "--update")
    assert sum(name.startswith(f"{tmp_path}/v/") for name in opened) <= 1, "of any number of files"
    now = {path.name: path.stat().st_ino for path in sorted(tmp_path.glob("v/*.parquet"))}
    assert 1 <= sum(now.get(name) != number for name, number in before.items()) <= 2 and {*before} <= {*now}
    assert pq.read_table(tmp_path / "v").num_rows == 63


REFUSED = [
    (["--task", "clustering"], "task: it is 'clustering', and .*v.parquet was made with 'retrieval_document'; run it"),
    (["--chunk", "64"], "chunk: it is '64', and .*v.parquet was made with None; run it with that, or embed the corpus"),
    (["--carry", "dt"], "dt: its type is string, and none in .*v.parquet; give it as it was, or an input with all row"),
]


@pytest.mark.parametrize(("options", "problem"), REFUSED, ids=[options[0] for options, _ in REFUSED])
def test_another_model_or_option_is_refused(run: Run, tmp_path: Path, options: list[str], problem: str) -> None:
    run(ROWS, "v.parquet")
    content = (tmp_path / "v.parquet").read_bytes()
    with pytest.raises(AssertionError, match=problem):
        raise AssertionError(run(changed(ROWS), "v.parquet", "--update", *options))
    assert (tmp_path / "v.parquet").read_bytes() == content


def test_what_cannot_be_updated_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "a .npy output cannot be updated, as it does not say which texts its" in run(ROWS, "v.npy", "--update")
    assert "partition: only a folder has partitions; end the output with /" in run(
        ROWS, "v.parquet", "--partition-by", "dt"
    )
    monkeypatch.setitem(sys.modules, "lance", None)
    assert ".lance outputs need the package pylance; pip install pylance" in run(ROWS, "v.lance")
    run(ROWS, "v.parquet")
    twice = run([*ROWS, ROWS[3]], "v.parquet", "--update")
    assert "id: 'k3' is there twice, the second time as row 61, and an update tells rows by their ids; make" in twice
    pq.write_table(pq.read_table(tmp_path / "v.parquet").drop_columns(["text_hash"]), tmp_path / "w.parquet")
    assert "it has no column 'text_hash', or does not say which model made it" in run(ROWS, "w.parquet", "--update")
    run(ROWS, "v/")
    assert "it is there already; delete it, name another output, or update it (--update)" in run(ROWS, "v/")
    (tmp_path / "v" / "notes.txt").write_text("mine")
    assert "it has a file that no run made, 'notes.txt'; move it away" in run(ROWS, "v/", "--update")
    (tmp_path / "v" / "_SUCCESS").unlink()
    assert "it has no _SUCCESS of a run, so it is not whole, or something else" in run(ROWS, "v/", "--update")


@pytest.mark.parametrize("output", ["v.parquet", "v/"])
def test_an_output_that_changes_meanwhile_is_not_replaced(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str
) -> None:
    run(ROWS, output)
    path, true = tmp_path / output / "_SUCCESS" if output == "v/" else tmp_path / output, blocks.blocks_of

    def meanwhile(*arguments: Any) -> Any:
        yield from true(*arguments)
        path.unlink()
        path.write_bytes(b"somebody's work")

    with monkeypatch.context() as patch:
        patch.setattr("corpus.run.blocks_of", meanwhile)
        assert "it has changed since the update began; run it anew" in run(changed(ROWS), output, "--update")
    assert path.read_bytes() == b"somebody's work"


@pytest.mark.parametrize("output", ["v.parquet", "v/"])
def test_killed_at_any_of_its_last_steps_an_update_comes_to_the_same_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str
) -> None:
    run(changed(ROWS), f"scratch-{output}")
    whole = read(f"{tmp_path}/scratch-{output}")
    for owner, name in [
        (Destination, "deliver"),
        (ShardFolder, "set_done"),
        (Destination, "clear"),
        (ShardFolder, "remove"),
    ]:
        run(ROWS, output)
        before = read(f"{tmp_path}/{output}")
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *_: (_ for _ in ()).throw(SystemExit("killed")))
            assert run(changed(ROWS), output, "--update", "--remove") == "killed"
        same(read(f"{tmp_path}/{output}"), before if name == "deliver" else whole)
        assert run(changed(ROWS), output, "--update", "--remove").endswith("it was whole already")
        same(read(f"{tmp_path}/{output}"), whole)
        assert sorted(path.name for path in tmp_path.glob("v*")) == [output.rstrip("/")]
        for path in sorted(tmp_path.glob("v/*")) if output == "v/" else [tmp_path / output]:
            path.unlink()


def test_killed_while_it_removes_what_it_made_an_update_stays_as_it_is(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    true, parts = Path.unlink, shards_path(tmp_path / "v.parquet")
    run(ROWS, "v.parquet")
    for nth in range(4):
        left = [nth]

        def killed(path: Path, missing_ok: bool = False, left: list[int] = left) -> None:
            if path.parent == parts and ((parts / "done").exists() or path.name == "manifest.json"):
                left[0] -= 1
                if left[0] < 0:
                    raise SystemExit("killed")
            true(path, missing_ok=missing_ok)

        after = [{**row, "text": f"{row['text']} {nth}"} if i == nth else row for i, row in enumerate(ROWS)]
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", killed)
            assert run(after, "v.parquet", "--update") == "killed"
        whole = read(f"{tmp_path}/v.parquet")
        said = run(after, "v.parquet", "--update")
        assert not said.startswith("embed_corpus: ")
        same(read(f"{tmp_path}/v.parquet"), whole)
        assert not parts.exists()
