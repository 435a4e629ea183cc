"""A run neither replaces nor deletes files that it did not make, whenever they appeared."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from corpus import publishing
from corpus.output_files import side_file, side_files
from corpus.shards import ShardFolder, lock_folder, shards_path
from engine.native import choice, library
from scripts import embed_corpus
from tests.support.corpora import output_rows, texts, write

FORMS = ["parquet", "npy", "jsonl"]
STRANGE = b"somebody's work"
# The files that a run may make, for each format, with --on-error skip.
MADE = [(form, name) for form in FORMS for name in (f"v.{form}", "v.skipped.jsonl")] + [("npy", "v.rows.parquet")]

Run = Callable[..., str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "a.jsonl", [*({"text": text} for text in texts(20)), {"text": None}])


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, source: Path) -> Run:
    """A function that runs with --on-error skip and returns the error, "" for none."""

    def run(output: Path, *options: str, source: Path = source) -> str:
        arguments = [str(source), str(output), "--weights", "small", "--window", "8", "--on-error", "skip", *options]
        monkeypatch.setattr("sys.argv", ["embed_corpus", *arguments])
        try:
            embed_corpus.main()
        except SystemExit as ended:
            return str(ended.code)
        return ""

    return run


def files(folder: Path) -> Iterator[str]:
    return (str(path.relative_to(folder)) for path in sorted(folder.rglob("*")))


@pytest.mark.parametrize(("form", "name"), MADE)
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_was_there_before_is_named(run: Run, tmp_path: Path, form: str, name: str, kind: str) -> None:
    path, target = tmp_path / name, tmp_path / "target"
    if kind != "file":
        path.symlink_to(target)
    if kind != "dangling link":
        path.write_bytes(STRANGE)
    before = [*files(tmp_path)]
    assert run(tmp_path / f"v.{form}").startswith(f"embed_corpus: {path}: the file is there already; delete it, or nam")
    assert [*files(tmp_path)] == before
    assert kind == "dangling link" or path.read_bytes() == STRANGE


@pytest.mark.parametrize(("form", "name"), MADE)
@pytest.mark.parametrize("links", ["links", "no links"])
def test_what_is_made_meanwhile_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str, name: str, links: str
) -> None:
    path, output, true = tmp_path / name, tmp_path / f"v.{form}", publishing.publish

    def publish(partial: Path, to: Path) -> None:
        if to == path:
            path.write_bytes(STRANGE)
        true(partial, to)

    with monkeypatch.context() as patch:
        patch.setattr("corpus.destination.publish", publish)
        if links == "no links":
            patch.setattr(os, "link", refuse_links)
        assert f"{path}: a file of this name has been made meanwhile; move it away and run the same" in run(output)
    assert path.read_bytes() == STRANGE
    path.rename(tmp_path / "kept")
    if links == "links":
        assert run(output) == "" and len(output_rows(output)) == 20
    assert (tmp_path / "kept").read_bytes() == STRANGE


def refuse_links(*_: object) -> None:
    raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def test_without_second_names_a_file_is_published_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "link", refuse_links)
    assert run(tmp_path / "v.npy") == "" and len(output_rows(tmp_path / "v.npy")) == 20
    assert [*files(tmp_path)] == ["a.jsonl", "v.npy", "v.rows.parquet", "v.skipped.jsonl"]


@pytest.mark.parametrize("form", FORMS)
def test_an_input_is_never_an_output(run: Run, source: Path, tmp_path: Path, form: str) -> None:
    content = source.read_bytes()
    for name in (f"v.{form}", "v.skipped.jsonl", *(["v.rows.parquet"] if form == "npy" else [])):
        path = source.rename(tmp_path / name)
        (tmp_path / "link.jsonl").symlink_to(path)
        os.link(path, tmp_path / "second.jsonl")
        for spelling in (path, tmp_path / "link.jsonl", tmp_path / "second.jsonl", tmp_path / "." / name):
            assert run(tmp_path / f"v.{form}", source=spelling).startswith("embed_corpus: ")
            assert path.read_bytes() == content
        (tmp_path / "link.jsonl").unlink()
        (tmp_path / "second.jsonl").unlink()
        path.rename(source)


def test_a_folder_of_others_is_no_folder_of_a_run(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "v.parquet"
    parts = shards_path(output)
    parts.mkdir()
    (parts / "00000000").write_bytes(STRANGE)
    assert "it is no folder of a run, as it has '00000000' and no manifest.json; move it away, or name" in run(output)
    assert (parts / "00000000").read_bytes() == STRANGE
    output.write_bytes(STRANGE)
    assert "the file is there already" in run(output)
    assert (parts / "00000000").read_bytes() == output.read_bytes() == STRANGE


def test_a_file_in_the_folders_place_stays(run: Run, tmp_path: Path) -> None:
    parts = shards_path(tmp_path / "v.parquet")
    parts.write_bytes(STRANGE)
    assert f"{parts}: cannot be written: File exists" in run(tmp_path / "v.parquet")
    assert parts.read_bytes() == STRANGE


def test_what_others_put_into_a_runs_folder_stays(run: Run, tmp_path: Path) -> None:
    output, theirs = tmp_path / "v.parquet", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "notes.txt").write_bytes(STRANGE)
    for name in ("v.parquet.parts.lock", "v.parquet.partial", "v.skipped.jsonl.partial"):
        (tmp_path / name).write_bytes(STRANGE)
    true = ShardFolder.write

    def write_and_add(shards: ShardFolder, *arguments: object) -> None:
        true(shards, *arguments)  # type: ignore[arg-type]
        (shards.path / "notes.txt").write_bytes(STRANGE)
        if not (shards.path / "00000099").is_symlink():
            (shards.path / "00000099").symlink_to(theirs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardFolder, "write", write_and_add)
        assert run(output) == ""
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix not in (".parquet", ".jsonl")]
    assert len(left) == 5 and {path.read_bytes() for path in left} == {STRANGE}
    assert (shards_path(output) / "00000099").is_symlink()


def test_the_parts_of_a_run_under_way_stay(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "v.parquet"
    assert run(output, "--on-error", "stop").endswith("or skip such rows (on-error skip)")
    parts, before = shards_path(output), [*files(shards_path(output))]
    lock = lock_folder(parts)
    assert "another run is writing there; wait for it, or name another output" in run(output)
    output.write_bytes(STRANGE)
    assert "the file is there already" in run(output)
    os.close(lock)
    assert "the file is there already" in run(output)
    assert [*files(parts)] == before and output.read_bytes() == STRANGE


@pytest.mark.parametrize("form", FORMS)
def test_killed_after_any_of_its_last_steps_a_run_comes_to_the_same_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path, form: str
) -> None:
    output, whole, true = tmp_path / f"v.{form}", tmp_path / f"w.{form}", publishing.publish
    assert run(whole) == ""
    steps = 3 if form == "npy" else 2
    for step in range(steps + 1):
        left = [step]

        def killed(*arguments: Path, left: list[int] = left) -> None:
            if not left[0]:
                raise SystemExit("killed")
            left[0] -= 1
            true(*arguments)

        def not_removed(_: ShardFolder) -> None:
            raise SystemExit("killed")

        with monkeypatch.context() as patch:
            patch.setattr("corpus.destination.publish", killed)
            patch.setattr(ShardFolder, "remove", not_removed)
            assert run(output) == "killed"
        caplog.clear()
        caplog.set_level("INFO")
        assert run(output) == ""
        assert f"{output}: it was whole already" in caplog.messages
        assert output.read_bytes() == whole.read_bytes() and not shards_path(output).exists()
        assert len(side_file(output, "skipped.jsonl").read_text().splitlines()) == 1
        for path in (output, *side_files(output, skip=True)):
            path.unlink()


def test_a_whole_output_of_other_options_is_not_taken_for_this_runs(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "v.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(ShardFolder, "remove", lambda _: (_ for _ in ()).throw(SystemExit("killed")))
        assert run(output) == "killed"
    content = output.read_bytes()
    words = "task: it is 'clustering', and the run to go on with had 'retrieval_document'; run it with that"
    assert words in run(output, "--task", "clustering")
    with monkeypatch.context() as patch:
        patch.setattr(choice, "check_int8", lambda _: None)  # whatever this machine has
        for dtype in ("bfloat16", "int8"):
            patch.setenv("DTYPE", dtype)
            assert f"dtype: it is '{dtype}', and the run to go on with had 'float32'; run it with" in run(output)
    assert output.read_bytes() == content and shards_path(output).exists()


def test_a_format_that_cannot_be_computed_here_leaves_nothing_behind(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DTYPE", "int8")
    monkeypatch.setenv("ENGINE", "reference")
    before = [*files(tmp_path)]
    words = "embed_corpus: DTYPE is int8, which ENGINE=reference does not have; use bfloat16, or ENGINE=packed"
    assert run(tmp_path / "v.parquet") == words and [*files(tmp_path)] == before
    monkeypatch.setenv("ENGINE", "packed")
    library.load.cache_clear()
    monkeypatch.setattr(library, "_folders", list)  # as on a machine without a compiler
    words = "embed_corpus: DTYPE is int8, which cannot be computed here: no binary for "
    assert run(tmp_path / "v.parquet").startswith(words) and [*files(tmp_path)] == before
    library.load.cache_clear()


def test_the_same_command_again_says_that_the_output_is_there(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "v.parquet") == ""
    content = (tmp_path / "v.parquet").read_bytes()
    assert "v.parquet: the file is there already; delete it, or name another" in run(tmp_path / "v.parquet")
    assert (tmp_path / "v.parquet").read_bytes() == content
