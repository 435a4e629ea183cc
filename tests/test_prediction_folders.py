"""The folders that Cog's server makes for predictions: removed, unless they may be in use."""

import os
import time
from pathlib import Path

import pytest

import prediction_folders
from prediction_folders import FILE_GRACE_S, GRACE_S, PredictionFolders


def make(directory: Path, name: str, age_s: float, answer: bool = False) -> Path:
    """Make a folder as Cog's server does, with an answer in it that was not sent."""
    folder = directory / name
    made = time.time() - age_s
    for path in (folder, folder / "inputs", folder / "outputs"):
        path.mkdir()
    if answer:
        (folder / "outputs" / "spill.json").touch()
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (made, made))
    return folder


def test_old_folders_go_and_others_stay(tmp_path: Path) -> None:
    old = [make(tmp_path, f"old-{i}", 100 + i) for i in range(20)]
    new = make(tmp_path, "new", 1)
    answer = make(tmp_path, "answer", FILE_GRACE_S - 100, answer=True)
    old += [make(tmp_path, "old answer", FILE_GRACE_S + 100, answer=True)]
    (tmp_path / "file").touch()
    assert PredictionFolders(tmp_path).sweep(time.time()) == 21
    assert not any(folder.exists() for folder in old)
    assert (new / "outputs").exists() and (answer / "outputs" / "spill.json").exists() and (tmp_path / "file").exists()


def test_the_folder_of_a_running_prediction_is_spared_until_its_answer_was_sent(tmp_path: Path) -> None:
    folders = PredictionFolders(tmp_path)
    own = make(tmp_path, "own", 2)
    with folders.in_use():
        older = make(tmp_path, "older", 200)
        later = time.time() + 3_600  # the prediction has been running for an hour
        younger = make(tmp_path, "younger", -1_800)
        assert folders.sweep(later) == 2
        assert (own / "outputs").exists() and not older.exists() and not younger.exists()
    assert folders.sweep(time.time() + GRACE_S - 1) == 0
    assert folders.sweep(time.time() + GRACE_S + 1) == 1


def test_a_folder_for_an_answer_is_new_and_removed_later(tmp_path: Path) -> None:
    folders = PredictionFolders(tmp_path / "made")
    first, second = folders.make(), folders.make()
    assert first != second and first.parent == second.parent == tmp_path / "made"
    assert folders.sweep(time.time() + GRACE_S + 1) == 2
    assert not first.exists() and not second.exists()


def test_folders_are_removed_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made later"
    monkeypatch.setattr(prediction_folders, "SWEEP_EVERY_S", 0.05)
    PredictionFolders(folder)
    time.sleep(0.1)
    folder.mkdir()
    old = make(folder, "old", 100)
    deadline = time.monotonic() + 10
    while old.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
