"""Values of WEIGHTS that need no network: the bundled checkpoint and directories, whole or spoiled."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fetching.files import check_complete
from tests.support.files import edit_json, flip_bit
from weights import SMALL, WeightsError, resolve


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the small checkpoint to spoil, without canaries."""
    return Path(shutil.copytree(SMALL, tmp_path / "small", ignore=shutil.ignore_patterns("canaries.json")))


def test_small_is_the_bundled_checkpoint_with_its_hash() -> None:
    checkpoint = resolve("small")
    assert checkpoint.directory == SMALL
    assert checkpoint.canaries == SMALL / "canaries.json"
    assert checkpoint.name == resolve(str(SMALL)).name == "small@sha256:b9e94f2ae1df"


def test_the_hash_changes_with_the_contents(copy: Path) -> None:
    before = resolve(str(copy)).name
    assert before == resolve("small").name
    flip_bit(copy / "3_Dense" / "model.safetensors")
    assert resolve(str(copy)).name != before


@pytest.mark.parametrize(
    "name", ["./nowhere", "../no/where", "/no/such/place", "embeddinggemma", "a/b/c", "~/nothing-here"]
)
def test_a_name_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(
        WeightsError, match=r"WEIGHTS=.*no such directory, and not the name of .*; name a directory .*small"
    ):
        resolve(name)


@pytest.mark.parametrize("token", ['"hf_secret"', "'hf_secret'", "hf_\nsecret", "hf_secret x", "hf_secret€"])
def test_a_token_that_no_header_carries_is_refused_and_not_shown(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    for name in ("", "owner/name"):
        with pytest.raises(WeightsError, match=r"^HF_TOKEN has a quote, a blank or .*; set it to the token alone$"):
            resolve(name)


@pytest.mark.parametrize(
    "missing", ["model.safetensors", "tokenizer.json", "modules.json", "2_Dense/model.safetensors"]
)
def test_the_refusal_of_an_incomplete_directory_names_what_is_missing(copy: Path, missing: str) -> None:
    (copy / missing).unlink()
    with pytest.raises(WeightsError, match=rf"small: {missing} missing; a checkpoint is a directory in sentence-trans"):
        resolve(str(copy))


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("modules.json", "[1, 2]", r"modules\.json: not a list of modules with their paths"),
        ("canaries.json", "[]", r"canaries\.json: not a file of canaries \(.*\); write it again with scripts/verify"),
        ("canaries.json", "{", r"canaries\.json: not a file of canaries \(.*\); write it again with scripts/verify"),
    ],
)
def test_the_refusal_of_unreadable_json_names_the_file(copy: Path, name: str, content: str, problem: str) -> None:
    (copy / name).write_text(content, encoding="utf-8")
    with pytest.raises(WeightsError, match=problem):
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
def test_modules_that_lead_outside_are_refused(copy: Path, module: dict[str, str], problem: str) -> None:
    edit_json(copy / "modules.json", lambda modules: [*modules, module])
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
    copy: Path, spoil: Callable[[bytes], bytes], problem: str
) -> None:
    path = copy / "2_Dense" / "model.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(WeightsError, match=rf"2_Dense/model\.safetensors: .*{problem}.*fetch it again"):
        resolve(str(copy))


def test_content_other_than_the_pinned_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    sha256 = resolve("small").sha256
    monkeypatch.setenv("WEIGHTS_SHA256", sha256[:16])
    assert resolve(str(SMALL)).sha256 == sha256
    for pin in ("0" * 64, sha256[:4]):
        monkeypatch.setenv("WEIGHTS_SHA256", pin)
        with pytest.raises(WeightsError, match=rf"SHA-256 {sha256} and WEIGHTS_SHA256 is '{pin}'; set it to the hash"):
            resolve(str(SMALL))


def test_files_other_than_the_canaries_were_written_for_are_refused_with_both_hashes(copy: Path) -> None:
    shutil.copyfile(SMALL / "canaries.json", copy / "canaries.json")
    assert resolve(str(copy)).canaries == copy / "canaries.json"
    refused = []
    for name in ("model.safetensors", "tokenizer.json"):
        expected = hashlib.sha256((copy / name).read_bytes()).hexdigest()
        flip_bit(copy / name)
        actual = hashlib.sha256((copy / name).read_bytes()).hexdigest()
        refused.append(f"{name} has SHA-256 {actual}, expected {expected}")
    with pytest.raises(WeightsError) as caught:
        resolve(str(copy))
    assert str(caught.value) == (
        f"{copy}/canaries.json was written for other files: {'; '.join(refused)}; restore them, or write the canaries "
        "again with scripts/verify.py --write"
    )


def test_canaries_without_hashes_are_accepted(copy: Path) -> None:
    (copy / "canaries.json").write_text("{}", encoding="utf-8")
    flip_bit(copy / "model.safetensors")
    assert resolve(str(copy)).canaries == copy / "canaries.json"


@pytest.fixture(scope="module")
def saved(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each checkpoint as the installed sentence-transformers saves it."""
    from sentence_transformers import SentenceTransformer  # takes seconds

    directory = tmp_path_factory.mktemp("saved") / "saved"
    SentenceTransformer(str(checkpoint), device="cpu").save(str(directory))
    return directory


def test_a_saved_checkpoint_resolves_and_its_limit_of_tokens_is_part_of_its_name(
    saved: Path, checkpoint: Path, tmp_path: Path
) -> None:
    assert set(check_complete(checkpoint)) < set(check_complete(saved))
    assert "tokenizer_config.json" not in check_complete(checkpoint)
    copy = Path(shutil.copytree(saved, tmp_path / "saved"))
    name = resolve(str(copy)).name
    edit_json(copy / "tokenizer_config.json", lambda config: config | {"model_max_length": 512})
    assert resolve(str(copy)).name != name
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(WeightsError, match=r"saved: tokenizer_config\.json missing; a checkpoint is a directory"):
        resolve(str(copy))


def test_the_tokenizers_limit_does_not_matter_where_the_checkpoint_has_its_own(copy: Path) -> None:
    edit_json(copy / "tokenizer_config.json", lambda config: config | {"model_max_length": 512})
    assert resolve(str(copy)).name == resolve("small").name


def test_the_hashes_of_a_large_directory_are_remembered(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fetching.cache.HASHED_ANEW_BYTES", 0)
    hashed: list[str] = []
    digest = hashlib.file_digest

    def recording_digest(file: Any, kind: str) -> object:
        hashed.append(file.name)
        return digest(file, kind)

    monkeypatch.setattr("hashlib.file_digest", recording_digest)
    first = resolve(str(tiny))
    assert hashed
    hashed.clear()
    assert resolve(str(tiny)) == first
    assert hashed == []
    flip_bit(tiny / "model.safetensors")
    assert resolve(str(tiny)).name != first.name
    assert hashed == [str(tiny / "model.safetensors")]
