import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import weights
from tests.hub import COMMIT, running_hub
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


def resolve_elsewhere(name: str, hub: str, home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Resolve `name` in a new process: the hub's client reads its settings when it is imported."""
    code = (
        "import sys, weights\n"
        "try: print(weights.resolve(sys.argv[1] or None))\n"
        "except weights.WeightsError as error: sys.exit(str(error))"
    )
    settings = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1", **variables}
    return subprocess.run(
        [sys.executable, "-c", code, name],
        env=os.environ | settings,
        cwd=Path(weights.__file__).parent,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_repository_is_fetched_once_and_named_by_its_commit(tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    shutil.copytree(SMALL, tmp_path / "repo", dirs_exist_ok=True)
    (tmp_path / "repo" / "pytorch_model.bin").write_bytes(b"a pickle")
    with running_hub(tmp_path / "repo") as (url, requests):
        first = resolve_elsewhere("some/model", url, tmp_path / "home")
        assert first.returncode == 0, first.stderr
        assert f"some/model@{COMMIT}" in first.stdout
        assert any("model.safetensors" in path for path in requests)
        assert not any(".bin" in path for path in requests)
    offline = resolve_elsewhere("some/model", url, tmp_path / "home", HF_HUB_OFFLINE="1")
    assert offline.stdout == first.stdout


def test_the_default_is_the_genuine_model_at_its_pinned_revision(tmp_path: Path) -> None:
    with running_hub(SMALL, (404, "RevisionNotFound")) as (url, requests):
        result = resolve_elsewhere("", url, tmp_path / "home")
    assert any("google/embeddinggemma-300m" in path and weights.GENUINE_REVISION in path for path in requests)
    assert f"at revision {weights.GENUINE_REVISION}: there is no such revision" in result.stderr


@pytest.mark.parametrize(
    ("refusal", "problem"),
    [
        (
            (403, "GatedRepo"),
            "is gated; accept the licence at https://huggingface.co/google/embeddinggemma-300m and set HF_TOKEN",
        ),
        ((401, "GatedRepo"), "is gated; accept the licence"),
        ((404, "RepoNotFound"), "there is no such repository, or it is private; check the name"),
        ((404, "RevisionNotFound"), "there is no such revision; name one that the repository has"),
        ((501, ""), "it is not in the cache and the hub did not give it (HfHubHTTPError: "),
    ],
)
def test_a_refusal_is_one_sentence_with_the_remedy(tmp_path: Path, refusal: tuple[int, str], problem: str) -> None:
    with running_hub(SMALL, refusal) as (url, _):
        result = resolve_elsewhere("google/embeddinggemma-300m", url, tmp_path / "home")
    last = result.stderr.strip().split("\n")[-1]
    assert result.returncode == 1
    assert last.startswith("WEIGHTS=google/embeddinggemma-300m: could not be fetched from the Hugging Face hub")
    assert problem in last
    assert last.endswith("or try WEIGHTS=small")


def test_no_network_is_said_so(tmp_path: Path) -> None:
    result = resolve_elsewhere("google/embeddinggemma-300m", "http://127.0.0.1:9", tmp_path / "home")
    assert "the hub did not give it (ConnectError: [Errno 111] Connection refused); check the network" in result.stderr
