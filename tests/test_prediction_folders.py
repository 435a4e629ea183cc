"""The folders that Cog's server makes for predictions: removed, unless a server that lives may need them."""

import contextvars
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prediction_folders
from prediction_folders import FILE_GRACE_S, GRACE_S, MARK, STRANGER_GRACE_S, FolderError, PredictionFolders

# What another process does with a prediction: it runs until it is killed.
RUN = """
import contextvars, pathlib, sys, time
from prediction_folders import PredictionFolders
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
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "old-1")
    assert PredictionFolders(tmp_path).sweep(time.time()) == 22
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
    with subprocess.Popen(command, cwd=Path(prediction_folders.__file__).parent, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"runs\n"
        assert folders.sweep(later) == 0 and (tmp_path / "long" / "outputs").is_dir()
        other.kill()
    assert folders.sweep(later) == 1


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", ".", "a/../.."])
def test_an_id_that_leads_elsewhere_touches_nothing_there(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "made"
    folders = PredictionFolders(folder)

    def run() -> None:
        contextvars.ContextVar[str]("_coglet_prediction_id").set(name)
        with folders.in_use():
            pass

    before = sorted(tmp_path.rglob("*"))
    contextvars.copy_context().run(run)
    assert sorted(tmp_path.rglob("*")) == before and not Path("/elsewhere").exists()


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
    with pytest.raises(FolderError, match="remove it, or have its owner set its mode to 1777"):
        PredictionFolders(Path("/proc/none"))


def test_folders_are_removed_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made later"
    monkeypatch.setattr(prediction_folders, "SWEEP_EVERY_S", 0.05)
    PredictionFolders(folder)
    folder.rmdir()
    time.sleep(0.1)
    folder.mkdir()
    old = make(folder, "old", 100)
    deadline = time.monotonic() + 10
    while old.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
