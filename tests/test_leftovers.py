"""The directories that Cog's server leaves: removed, unless they may be in use."""

import os
import time
from pathlib import Path

import pytest

import leftovers
from leftovers import Leftovers


def make(directory: Path, name: str, age_s: float) -> Path:
    made = directory / name
    made.mkdir()
    then = time.time() - age_s
    os.utime(made, (then, then))
    return made


def test_old_empty_directories_go_and_others_stay(tmp_path: Path) -> None:
    old = [make(tmp_path, f"old-{i}", 100 + i) for i in range(20)]
    new = make(tmp_path, "new", 1)
    full = make(tmp_path, "full", 0)
    (full / "output").touch()
    os.utime(full, (0, 0))
    (tmp_path / "file").touch()
    assert Leftovers(tmp_path).sweep(time.time()) == 20
    assert not any(one.exists() for one in old)
    assert new.exists() and full.exists() and (tmp_path / "file").exists()


def test_the_directory_of_a_running_prediction_is_spared(tmp_path: Path) -> None:
    kept = Leftovers(tmp_path)
    own = make(tmp_path, "own", 2)
    with kept.in_use():
        older = make(tmp_path, "older", 200)
        later = time.time() + 3_600  # the prediction has been running for an hour
        younger = make(tmp_path, "younger", -1_800)
        assert kept.sweep(later) == 2
        assert own.exists() and not older.exists() and not younger.exists()
    assert kept.sweep(later) == 1


def test_they_are_removed_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "made later"
    monkeypatch.setattr(leftovers, "EVERY_S", 0.05)
    Leftovers(directory)
    time.sleep(0.1)
    directory.mkdir()
    old = make(directory, "old", 100)
    deadline = time.monotonic() + 10
    while old.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
