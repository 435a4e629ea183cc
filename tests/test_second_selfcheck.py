"""The self-check on EmbeddingGemma 2, of which no vectors are known until its manifest is recorded."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import selfcheck
import weights
from engine import memory
from engine.configs import read_architecture
from engine.model import FLOAT32
from engine.packed import PackedEngine
from fetching.files import hash_file, read_manifest
from lab.checkpoints.second import TOWER
from lab.judging.canaries import record, write
from selfcheck import SelfCheckError


def without_canaries(directory: Path) -> str:
    loaded = PackedEngine(directory, "cpu", FLOAT32)
    return selfcheck.check(loaded, directory, None)


def test_the_second_generation_is_compared_with_sentence_transformers_until_vectors_are_known(
    second_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "comparisons with sentence-transformers, as no vectors of it are known, hold" in without_canaries(
        second_weights
    )
    right = read_architecture
    wrong = {
        "a window off by one": {"windows": (9, 9, 9, 9, 9, None)},
        "gains with a 1": {"gain_offset": 1.0},
    }
    for fields in wrong.values():
        monkeypatch.setattr("engine.packed.read_architecture", lambda path, f=fields: replace(right(path), **f))
        with pytest.raises(SelfCheckError, match="self-checks failed: vector of"):
            without_canaries(second_weights)


def test_the_comparison_is_left_out_in_words_where_it_cannot_run(
    second_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a loaded engine sentence-transformers takes its libraries' memory and the text tower's in float32."""
    tensors = load_file(second_weights / "model.safetensors").items()
    tower = sum(tensor.numel() for name, tensor in tensors if name.startswith(TOWER))
    needed = memory.REFERENCE_LIBRARIES_BYTES + 4 * tower
    loaded, rooms = PackedEngine(second_weights, "cpu", FLOAT32), [memory.Room(needed - 1, "the machine has no more")]
    monkeypatch.setattr(memory, "_in_control_groups", lambda: [])
    monkeypatch.setattr(memory, "_in_addresses", lambda: [])
    monkeypatch.setattr(memory, "_in_machine", lambda: rooms)
    said = selfcheck.check(loaded, second_weights, None)
    takes = f"were not compared, as sentence-transformers takes at least {needed / 1e6:,.0f} MB of memory"
    assert said.startswith(f"its prompts are right; its vectors {takes}")
    assert "(the machine has no more); record known vectors once" in said and "--record for a repository" in said
    rooms[0] = memory.Room(needed, "enough")
    assert "comparisons with sentence-transformers" in selfcheck.check(loaded, second_weights, None)
    monkeypatch.setitem(sys.modules, "engine.reference", None)
    assert "as sentence-transformers is not installed; record" in selfcheck.check(loaded, second_weights, None)


def test_known_vectors_show_a_config_or_gains_that_are_off_by_one(second_weights: Path, tmp_path: Path) -> None:
    """Which a reference that reads the same files cannot."""
    canaries = write(second_weights, tmp_path / "canaries.json")
    assert "hold" in selfcheck.check(PackedEngine(second_weights, "cpu", FLOAT32), second_weights, canaries)
    copy = Path(shutil.copytree(second_weights, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["sliding_window"] += 1
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(SelfCheckError, match="vector of"):
        selfcheck.check(PackedEngine(copy, "cpu", FLOAT32), copy, canaries)
    shutil.copyfile(second_weights / "config.json", copy / "config.json")
    tensors = load_file(copy / "model.safetensors")
    shifted = {name: tensor + 1 if name.endswith("norm.weight") else tensor for name, tensor in tensors.items()}
    save_file(shifted, copy / "model.safetensors")
    with pytest.raises(SelfCheckError, match="vector of"):
        selfcheck.check(PackedEngine(copy, "cpu", FLOAT32), copy, canaries)


def test_a_manifest_is_recorded_with_the_known_vectors(second_weights: Path, tmp_path: Path) -> None:
    blank = Path(shutil.copyfile(weights.SECOND.path, tmp_path / "second.json"))
    checkpoint = weights.resolve(str(second_weights))
    paths = record(checkpoint, read_manifest(blank))
    assert paths == [blank, tmp_path / "second-canaries.json"]
    manifest = read_manifest(blank)
    assert manifest.files["model.safetensors"].sha256 == hash_file(second_weights / "model.safetensors")
    assert all(file.size and file.sha256 for file in manifest.files.values())
    assert "hold" in selfcheck.check(PackedEngine(second_weights, "cpu", FLOAT32), second_weights, paths[1])
    copy = Path(shutil.copytree(second_weights, tmp_path / "copy"))
    (copy / "config_sentence_transformers.json").unlink()
    with pytest.raises(weights.WeightsError, match=r"config_sentence_transformers\.json missing"):
        record(weights.resolve(str(copy)), read_manifest(blank))
