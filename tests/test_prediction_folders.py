"""The folders that Cog's server leaves: removed, unless they may be in use."""

import os
import time
from pathlib import Path

import pytest

import prediction_folders
from prediction_folders import FILES_S, GRACE_S, PredictionFolders


def make(directory: Path, name: str, age_s: float, answer: bool = False) -> Path:
    """Make a folder as Cog's server does, with an answer in it that was left."""
    made = directory / name
    then = time.time() - age_s
    for path in (made, made / "inputs", made / "outputs"):
        path.mkdir()
    if answer:
        (made / "outputs" / "spill.json").touch()
    for path in (*made.rglob("*"), made):
        os.utime(path, (then, then))
    return made


def test_old_folders_go_and_others_stay(tmp_path: Path) -> None:
    old = [make(tmp_path, f"old-{i}", 100 + i) for i in range(20)]
    new = make(tmp_path, "new", 1)
    answer = make(tmp_path, "answer", FILES_S - 100, answer=True)
    old += [make(tmp_path, "old answer", FILES_S + 100, answer=True)]
    (tmp_path / "file").touch()
    assert PredictionFolders(tmp_path).sweep(time.time()) == 21
    assert not any(one.exists() for one in old)
    assert (new / "outputs").exists() and (answer / "outputs" / "spill.json").exists() and (tmp_path / "file").exists()


def test_the_folder_of_a_running_prediction_is_spared_until_its_answer_has_left(tmp_path: Path) -> None:
    kept = PredictionFolders(tmp_path)
    own = make(tmp_path, "own", 2)
    with kept.in_use():
        older = make(tmp_path, "older", 200)
        later = time.time() + 3_600  # the prediction has been running for an hour
        younger = make(tmp_path, "younger", -1_800)
        assert kept.sweep(later) == 2
        assert (own / "outputs").exists() and not older.exists() and not younger.exists()
    assert kept.sweep(time.time() + GRACE_S - 1) == 0
    assert kept.sweep(time.time() + GRACE_S + 1) == 1


def test_they_are_removed_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made later"
    monkeypatch.setattr(prediction_folders, "EVERY_S", 0.05)
    PredictionFolders(folder)
    time.sleep(0.1)
    folder.mkdir()
    old = make(folder, "old", 100)
    deadline = time.monotonic() + 10
    while old.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
