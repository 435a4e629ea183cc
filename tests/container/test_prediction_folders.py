"""The folders that Cog's server makes for predictions: removed, unless a server that lives may need them."""

import asyncio
import contextvars
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from container import prediction_folders
from container.make_openapi import ROOT
from container.prediction_folders import (
    FILE_GRACE_S,
    GRACE_S,
    INPUT,
    MARK,
    SETTLED_S,
    SMALL_NUMBERS,
    STRANGER_GRACE_S,
    FolderError,
    IdRefused,
    PredictionFolders,
    keep_answer,
)
from tests.support.servers import eventually

# What another process does with a prediction: it runs until it is killed.
RUN = """
import contextvars, pathlib, sys, time
from container.prediction_folders import PredictionFolders
contextvars.ContextVar("_coglet_prediction_id").set(sys.argv[2])
with PredictionFolders(pathlib.Path(sys.argv[1])).in_use():
    print("runs", flush=True)
    time.sleep(600)
"""


def make(directory: Path, name: str, age_s: float, *files: str, ours: bool = True) -> Path:
    """Make a folder as Cog's server does, with an answer in it that was not sent."""
    folder = directory / name
    made = time.time() - age_s
    for path in (folder / "outputs", folder / "inputs", *([folder / MARK] if ours else [])):
        path.mkdir(parents=True)
    for file in files:
        (folder / file).touch()
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (made, made))
    return folder


def test_old_folders_go_and_others_stay(tmp_path: Path) -> None:
    old = [make(tmp_path, f"old-{i}", 100 + i) for i in range(20)]
    new = make(tmp_path, "new", 1)
    answer = make(tmp_path, "answer", FILE_GRACE_S - 100, "outputs/spill.json")
    old += [make(tmp_path, "old answer", FILE_GRACE_S + 100, "outputs/spill.json")]
    old += [make(tmp_path, "never begun", STRANGER_GRACE_S + 100, "inputs/spill.json", ours=False)]
    strange = make(tmp_path, "another program's", STRANGER_GRACE_S - 100, ours=False)
    deep = make(tmp_path, "another/program's", STRANGER_GRACE_S - 100, ours=False).parent
    old += [make(tmp_path, "fetched", GRACE_S + 10, "inputs/spill.json")]
    (old[-1] / "inputs" / "spill.json").rename(old[-1] / MARK / "file.txt")
    (old[-1] / MARK).rename(old[-1] / f"{INPUT}1")
    (old[-1] / MARK).mkdir()
    os.utime(old[-1], (time.time() - GRACE_S - 10,) * 2)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "old-1")
    assert PredictionFolders(tmp_path).sweep(time.time()) == 23
    assert not any(folder.exists() for folder in old)
    assert {path.name for path in tmp_path.iterdir()} == {"new", "answer", strange.name, deep.name, "file", "link"}
    assert (new / "outputs").exists() and (answer / "outputs" / "spill.json").exists()


@pytest.mark.parametrize("name", ["own", "of/two parts", "made later"])
def test_every_server_spares_the_folder_of_a_prediction_that_runs_anywhere(tmp_path: Path, name: str) -> None:
    if name != "made later":
        make(tmp_path, name, STRANGER_GRACE_S - 100, ours=False)  # its file has been downloaded since
    servers = [PredictionFolders(tmp_path) for _ in range(3)]
    contextvars.copy_context().run(_run_and_sweep, servers, tmp_path, name)
    assert servers[1].sweep(time.time() + GRACE_S - 1) == 0
    assert servers[1].sweep(time.time() + GRACE_S + 1) == 1


def _run_and_sweep(servers: list[PredictionFolders], folder: Path, name: str) -> None:
    contextvars.ContextVar[str]("_coglet_prediction_id").set(name)
    later = time.time() + 10 * STRANGER_GRACE_S
    with servers[0].in_use() as own:
        assert own == folder / name / MARK and own.is_dir()
        with servers[2].in_use():  # a client has sent the same id to two servers
            assert [server.sweep(later) for server in servers] == [0, 0, 0]
        assert [server.sweep(later) for server in servers] == [0, 0, 0] and (folder / name / "outputs").is_dir()


def test_what_a_killed_server_leaves_is_removed_by_another(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RUN, str(tmp_path), "long"]
    folders, later = PredictionFolders(tmp_path), time.time() + 3_600
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"runs\n"
        assert folders.sweep(later) == 0 and (tmp_path / "long" / "outputs").is_dir()
        other.kill()
    assert folders.sweep(later) == 1


def run(folders: PredictionFolders, name: str, *made: str, numbers: int = 0) -> None:
    """Do with a prediction what Cog's server and `run` do; `made` are files that it leaves."""
    for each in ("outputs", "inputs"):
        os.makedirs(folders._folder / name / each, exist_ok=True)

    def predict() -> None:
        contextvars.ContextVar[str]("_coglet_prediction_id").set(name)
        with folders.in_use() as own:
            keep_answer(own, numbers)
            for file in made:
                (folders._folder / name / file).touch()

    contextvars.copy_context().run(predict)


def test_the_folder_of_a_small_answer_is_removed_at_once_and_any_other_is_left_whole(tmp_path: Path) -> None:
    folders = PredictionFolders(tmp_path)
    spilt = "outputs/spill.json"
    for i in range(20):
        run(folders, f"small-{i}", numbers=SMALL_NUMBERS)
    run(folders, "large", numbers=SMALL_NUMBERS + 1)  # whose answer Cog's server may be about to write
    run(folders, "file", f"{MARK}/vectors.parquet")
    run(folders, "comes again", "inputs/spill.json")
    run(folders, "of/two parts")  # which has no turn, as its lock is on another folder
    assert len(list(tmp_path.iterdir())) == 24
    assert [folders.clear_next() for _ in range(23)] == [True] * 20 + [False] * 3
    assert {path.name for path in tmp_path.iterdir()} == {"large", "file", "comes again", "of"}
    for name in ("large", "file", "comes again", "of/two parts"):
        assert (tmp_path / name / MARK).is_dir() and (tmp_path / name / "outputs").is_dir()
    (tmp_path / "large" / spilt).touch()
    assert folders.sweep(time.time() + GRACE_S + 1) == 1


def test_a_folder_whose_id_is_used_again_is_removed_after_the_last_use(tmp_path: Path) -> None:
    folders = PredictionFolders(tmp_path)
    run(folders, "again")
    time.sleep(SETTLED_S / 2)
    run(folders, "again")
    assert [folders.clear_next() for _ in range(2)] == [False, True] and list(tmp_path.iterdir()) == []
    run(folders, "swept")
    assert folders.sweep(time.time() + GRACE_S + 1) == 1 and not folders.clear_next()


def test_a_folder_that_another_server_uses_is_not_removed_at_once(tmp_path: Path) -> None:
    folders, other = PredictionFolders(tmp_path), PredictionFolders(tmp_path)
    run(folders, "shared")

    def predict() -> None:
        contextvars.ContextVar[str]("_coglet_prediction_id").set("shared")
        with other.in_use() as own:
            assert not folders.clear_next() and own.is_dir() and (tmp_path / "shared" / "outputs").is_dir()

    contextvars.copy_context().run(predict)
    assert other.clear_next() and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gone", [["outputs"], [MARK], ["outputs", MARK], ["outputs", MARK, ""]])
def test_what_goes_while_a_prediction_begins_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: list[str]
) -> None:
    lock, folder = prediction_folders._lock, tmp_path / "same"
    going = list(gone)

    def wait_and_lock(path: str, kind: int) -> int:
        while going:
            os.rmdir(folder / going.pop(0))
        return lock(path, kind)

    monkeypatch.setattr(prediction_folders, "_lock", wait_and_lock)
    (folder / "outputs").mkdir(parents=True)

    def predict() -> None:
        contextvars.ContextVar[str]("_coglet_prediction_id").set("same")
        with PredictionFolders(tmp_path).in_use() as own:
            assert own.is_dir() and (folder / "outputs").is_dir() and not going

    contextvars.copy_context().run(predict)


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", ".", "a/../.."])
def test_an_id_that_leads_elsewhere_is_refused_and_leaves_nothing_there(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "made"
    folders = PredictionFolders(folder)

    def run() -> None:
        contextvars.ContextVar[str]("_coglet_prediction_id").set(name)
        with pytest.raises(IdRefused, match="id: it leads out of the folder"), folders.in_use():
            pass

    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs" / "somebody's").touch()
    (tmp_path / "outputs").mkdir()
    os.utime(tmp_path / "outputs", (0, 0))
    before = sorted(tmp_path.rglob("*"))
    for each in ("inputs", "outputs"):  # as Cog's server does
        os.makedirs(os.path.join(folder, name, each), exist_ok=True)
    contextvars.copy_context().run(run)
    assert sorted({*tmp_path.rglob("*")} - {folder / "a"}) == before and not Path("/elsewhere").exists()


def test_a_prediction_without_an_id_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = PredictionFolders(tmp_path / "made")
    with folders.in_use() as first, folders.in_use() as second:
        assert first != second and first.is_dir() and second.is_dir()
        assert folders.sweep(time.time() + 3_600) == 0
    assert folders.sweep(time.time() + GRACE_S + 1) == 2


def test_a_folder_is_shared_with_other_users_or_refused_in_words(tmp_path: Path) -> None:
    PredictionFolders(tmp_path / "made")
    assert (tmp_path / "made").stat().st_mode & 0o7777 == 0o1777
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"file: .* cannot be written \(Not a directory|File exists"):
        PredictionFolders(tmp_path / "file")
    with pytest.raises(FolderError, match="make room there, remove it, or have its owner set its mode to 1777"):
        PredictionFolders(Path("/proc/none"))


def test_folders_are_removed_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made later"
    monkeypatch.setattr(prediction_folders, "SWEEP_EVERY_S", 0.05)
    folders = PredictionFolders(folder)
    folders.remove_in_background()
    folder.rmdir()
    time.sleep(0.1)
    folder.mkdir()
    old = make(folder, "old", 100)
    run(folders, "new")
    eventually(lambda: not old.exists() and not (folder / "new").exists(), "both are removed")


def test_a_folder_that_can_no_longer_be_written_is_noticed_and_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prediction_folders, "CHECK_EVERY_S", 0.0)
    folder = tmp_path / "made"
    folders = PredictionFolders(folder)
    assert asyncio.run(folders.healthy())
    folder.rmdir()
    folder.touch()
    assert [asyncio.run(folders.healthy()) for _ in range(2)] == [False, False]
    folder.unlink()
    assert [asyncio.run(folders.healthy()) for _ in range(2)] == [True, True]
    said, mended = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"unhealthy: {folder}: Cog's server keeps every prediction there, and it cannot be written")
    assert mended == f"healthy again: {folder}" and list(folder.iterdir()) == []
