import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from weights import SMALL, WeightsError, resolve


def test_small_is_the_bundled_one_with_its_hash() -> None:
    checkpoint = resolve("small")
    assert checkpoint.directory == SMALL
    assert checkpoint.name == resolve(str(SMALL)).name
    assert len(checkpoint.name) == len("small@sha256:") + 12


def test_the_hash_changes_with_the_contents(tmp_path: Path) -> None:
    copy = tmp_path / "small"
    shutil.copytree(SMALL, copy)
    before = resolve(str(copy)).name
    assert before == resolve("small").name
    dense = copy / "3_Dense" / "model.safetensors"
    content = bytearray(dense.read_bytes())
    content[-1] ^= 1
    dense.write_bytes(content)
    assert resolve(str(copy)).name != before


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/place", "embeddinggemma", "a/b/c", "~/nothing-here"])
def test_what_names_nothing_is_refused(name: str) -> None:
    with pytest.raises(
        WeightsError, match=r"WEIGHTS=.*no such directory, and not the name of .*; name a directory .*small"
    ):
        resolve(name)


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "tokenizer.json", "modules.json", "2_Dense/model.safetensors"]
)
def test_an_incomplete_directory_names_what_is_missing(tmp_path: Path, missing: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SMALL, copy)
    (copy / missing).unlink()
    with pytest.raises(WeightsError, match=rf"copy: {missing} missing; a checkpoint is a directory in sentence-transf"):
        resolve(str(copy))


def test_modules_that_are_no_list_name_the_file(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SMALL, copy)
    (copy / "modules.json").write_text("[1, 2]", encoding="utf-8")
    with pytest.raises(WeightsError, match=r"modules\.json: not a list of modules with their paths"):
        resolve(str(copy))


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (
            {"path": "../elsewhere", "type": "sentence_transformers.models.Dense"},
            r"\.\./elsewhere: only sentence-trans",
        ),
        ({"path": "/etc", "type": "sentence_transformers.models.Dense"}, "/etc: only sentence-transformers' own"),
        ({"path": "5_Own", "type": "own_code.Module"}, r"own_code\.Module: only sentence-transformers' own modules"),
    ],
    ids=["parent", "absolute", "code"],
)
def test_modules_that_lead_outside_are_refused(tmp_path: Path, module: dict[str, str], problem: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SMALL, copy)
    modules = json.loads((copy / "modules.json").read_text(encoding="utf-8"))
    (copy / "modules.json").write_text(json.dumps([*modules, module]), encoding="utf-8")
    with pytest.raises(WeightsError, match=problem):
        resolve(str(copy))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda data: data[:-1], r"bytes where its header says"),
        (lambda data: data + b"x", r"bytes where its header says"),
        (lambda data: b"\x80\x04pickle" + data, r"not a safetensors file"),
        (lambda data: data[:8], r"not a safetensors file"),
        (lambda data: b"", r"not a safetensors file"),
    ],
    ids=["short", "long", "pickle", "no header", "empty"],
)
def test_a_file_that_is_not_whole_is_refused_without_reading_it_all(
    tmp_path: Path, spoil: object, problem: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(SMALL, copy)
    path = copy / "2_Dense" / "model.safetensors"
    assert callable(spoil)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(WeightsError, match=rf"2_Dense/model\.safetensors: .*{problem}.*fetch it again"):
        resolve(str(copy))


def test_another_content_than_the_pinned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = resolve("small").sha256
    monkeypatch.setenv("WEIGHTS_SHA256", sha256[:16])
    assert resolve(str(SMALL)).sha256 == sha256
    for pin in ("0" * 64, sha256[:4]):
        monkeypatch.setenv("WEIGHTS_SHA256", pin)
        with pytest.raises(WeightsError, match=rf"SHA-256 {sha256} and WEIGHTS_SHA256 is {pin}; set it to the hash"):
            resolve(str(SMALL))


def test_the_hash_of_a_large_directory_is_remembered(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weights.HASHED_ANEW_BYTES", 0)
    read: list[str] = []
    digest = hashlib.file_digest

    def counting_digest(file: Any, kind: str) -> object:
        read.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr("hashlib.file_digest", counting_digest)
    first = resolve(str(tiny))
    assert read
    read.clear()
    assert resolve(str(tiny)) == first
    assert read == []
    path = tiny / "model.safetensors"
    spoiled = bytearray(path.read_bytes())
    spoiled[-1] ^= 1
    path.write_bytes(spoiled)
    assert resolve(str(tiny)).name != first.name
    assert read == [str(path)]
