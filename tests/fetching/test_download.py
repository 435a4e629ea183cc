"""Fetching from a server that misbehaves: the checkpoint is whole and right, or a sentence says why not."""

import hashlib
import json
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from fetching import tar
from fetching.files import read_manifest
from tests.support.files import flip_bit
from tests.support.hub import COMMIT, Hub, running_hub
from weights import MANIFEST, OFFICIAL, WeightsError, resolve

KINDS = ["hub", "tar"]


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the waits before retries and for stalled bodies: the server is on this machine."""
    monkeypatch.setattr("fetching.download.RETRY_DELAYS_S", (0.01, 0.02, 0.03))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
    # The client drops the bytes of an unfinished chunk, and its chunks are of 10 MB.
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1 << 12)
    sleep = time.sleep
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: sleep(min(seconds, 0.02)))
    for name in ("HF_TOKEN", "WEIGHTS_SHA256"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The tiny checkpoint as a repository, and as a tar."""
    served = tiny.parent / "served"
    shutil.copytree(tiny, served)
    (served / "pytorch_model.bin").write_bytes(b"a pickle")
    (served / "modeling.py").write_text("raise SystemExit", encoding="utf-8")
    with tarfile.open(served / "tiny.tar", "w") as archive:
        archive.add(served, "a folder", filter=lambda member: None if member.name.endswith(".tar") else member)
    with running_hub(served) as hub:
        use_hub(hub.url, monkeypatch)
        yield hub


def use_hub(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the hub's address as HF_ENDPOINT does when the client is imported."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def address(hub: Hub, kind: str) -> str:
    """Return the WEIGHTS that names the repository or the tar."""
    return "some/model" if kind == "hub" else f"{hub.url}/tiny.tar"


def assert_is_whole(directory: Path, tiny: Path) -> None:
    """Fail unless `directory` holds the files of `tiny`, byte for byte, and the record of where they came from."""
    files = {p.relative_to(directory): p.read_bytes() for p in directory.rglob("*") if p.is_file()}
    files.pop(Path("fetched.json"))
    assert files == {p.relative_to(tiny): p.read_bytes() for p in tiny.rglob("*") if p.is_file()}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refusal(weights: str | None, cache: Path) -> str:
    """Return the sentence with which `weights` is refused; nothing may be left under a checkpoint's name."""
    with pytest.raises(WeightsError) as caught:
        resolve(weights)
    assert not [path for path in cache.iterdir() if path.suffix not in (".lock", ".partial")]
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_is_fetched_once_and_named_by_source_revision_and_hash(hub: Hub, tiny: Path, kind: str) -> None:
    first = resolve(address(hub, kind))
    assert_is_whole(first.directory, tiny)
    assert first.name.startswith(f"some/model@{COMMIT}@sha256:" if kind == "hub" else "tiny@sha256:")
    assert first.name.endswith(first.sha256[:12])
    assert not any(request.endswith((".bin", ".py")) for request in hub.requests)
    hub.requests.clear()
    assert resolve(address(hub, kind)) == first
    assert resolve(str(first.directory)) == first
    assert hub.requests == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((403, "GatedRepo"), "is gated; accept the licence at https://huggingface.co/some/model and set HF_TOKEN"),
        ((401, "GatedRepo"), "is gated; accept the licence"),
        ((401, ""), "the server refuses it (401); check HF_TOKEN"),
        ((403, ""), "the server refuses it (403); check HF_TOKEN"),
        ((404, "RepoNotFound"), "there is no such repository, or it is private; check the name"),
        ((404, "RevisionNotFound"), "there is no such revision; name one that the repository has"),
        ((429, ""), "too many requests (429); try again later"),
        ((500, ""), "the server did not give it (HfHubHTTPError: Server error '500"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_a_refusal_of_the_hub_is_one_sentence_with_the_remedy(
    hub: Hub, cache: Path, answer: tuple[int, str], problem: str
) -> None:
    hub.faults.refusal = answer
    sentence = refusal("some/model", cache)
    assert sentence.startswith("WEIGHTS=some/model: could not be fetched from the Hugging Face hub (some/model): ")
    assert problem in sentence
    assert sentence.endswith("or try WEIGHTS=small")
    assert "\n" not in sentence
    hub.faults.refusal = None
    assert resolve("some/model").name.startswith("some/model@")


@pytest.mark.parametrize(
    ("status", "problem"),
    [(401, "refuses it (401)"), (403, "refuses it (403)"), (404, "does not have it (404)"), (429, "too many requests")],
)
def test_a_refusal_of_a_tar_is_one_sentence(hub: Hub, cache: Path, status: int, problem: str) -> None:
    hub.faults.refusal = (status, "")
    sentence = refusal(address(hub, "tar"), cache)
    assert (
        f"could not be fetched from {hub.url}/tiny.tar: the server {'has had ' * (status == 429)}{problem}" in sentence
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_passing_error_is_retried(hub: Hub, tiny: Path, kind: str) -> None:
    hub.faults.statuses = [500, 429, 503]
    assert_is_whole(resolve(address(hub, kind)).directory, tiny)


@pytest.mark.parametrize("kind", KINDS)
def test_a_connection_cut_at_every_tenth_is_resumed(hub: Hub, tiny: Path, kind: str) -> None:
    hub.faults.cuts = [tenth / 10 for tenth in range(1, 10)]
    assert_is_whole(resolve(address(hub, kind)).directory, tiny)
    assert hub.faults.cuts == []
    size = sum(path.stat().st_size for path in tiny.rglob("*") if path.is_file())
    assert hub.bytes_sent < 1.2 * size + 50_000


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extra", [-150_000, 1000], ids=["short", "long"])
def test_a_wrong_length_is_refused(hub: Hub, tiny: Path, cache: Path, kind: str, extra: int) -> None:
    hub.faults.extra = extra
    if kind == "tar" and extra > 0:  # what follows a tar's end is no part of it
        assert_is_whole(resolve(address(hub, kind)).directory, tiny)
        return
    sentence = refusal(address(hub, kind), cache)
    assert (
        "size" if kind == "hub" and extra > 0 else "no more than" if kind == "hub" else "tar cannot be read"
    ) in sentence
    hub.faults.extra = 0
    assert_is_whole(resolve(address(hub, kind)).directory, tiny)


def test_one_flipped_bit_is_refused_by_the_hubs_hash(hub: Hub, tiny: Path, cache: Path) -> None:
    hub.faults.flips = 1
    assert "model.safetensors has SHA-256" in refusal("some/model", cache)
    assert_is_whole(resolve("some/model").directory, tiny)


def test_canaries_written_for_other_files_are_refused(hub: Hub, tiny: Path, cache: Path) -> None:
    path = hub.directory / "canaries.json"
    path.write_text(json.dumps({"sha256": {"model.safetensors": "0" * 64}}), encoding="utf-8")
    sentence = refusal("some/model", cache)
    assert "from the Hugging Face hub (some/model) came something else: " in sentence
    assert "canaries.json was written for other files: model.safetensors has SHA-256" in sentence
    expected = sha256_of(tiny / "model.safetensors")
    path.write_text(json.dumps({"sha256": {"model.safetensors": expected}}), encoding="utf-8")
    checkpoint = resolve("some/model")
    assert checkpoint.canaries == checkpoint.directory / "canaries.json"


@pytest.mark.parametrize("kind", KINDS)
def test_a_redirect_is_followed(hub: Hub, tiny: Path, kind: str) -> None:
    hub.faults.redirects = True
    assert_is_whole(resolve(address(hub, kind)).directory, tiny)
    assert any("/elsewhere/" in request for request in hub.requests)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stall_ends_and_is_resumed(hub: Hub, tiny: Path, kind: str) -> None:
    hub.faults.stalls = 1
    assert_is_whole(resolve(address(hub, kind)).directory, tiny)
    assert hub.faults.stalls == 0


def test_a_part_of_another_tar_is_not_resumed(hub: Hub, tiny: Path, cache: Path) -> None:
    parts = cache / "parts"
    parts.mkdir()
    (parts / "archive.tar.part").write_bytes(b"of another archive" * 1000)
    (parts / "archive.tar.part.tag").write_text("another", encoding="utf-8")
    tar.fetch(f"{hub.url}/tiny.tar", cache)
    assert (cache / "checkpoint" / "model.safetensors").read_bytes() == (tiny / "model.safetensors").read_bytes()


def test_a_hostile_tar_is_refused_and_not_kept(hub: Hub, tiny: Path, cache: Path) -> None:
    path = hub.directory / "tiny.tar"
    good = path.read_bytes()
    with tarfile.open(path, "a") as archive:
        archive.add(tiny / "config.json", "../../../outside-it.json")
    sentence = refusal(address(hub, "tar"), cache)
    assert "the tar was refused: ../../../outside-it.json leads out of it; use one that was packed" in sentence
    assert not list(cache.parent.rglob("outside-it.json"))
    path.write_bytes(good)
    assert_is_whole(resolve(address(hub, "tar")).directory, tiny)


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_without_room_is_refused_before_the_download(
    hub: Hub, cache: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fetching.download.SPARE_BYTES", 10**18)
    assert "MB are free; free some, or set WEIGHTS_CACHE to a folder on a larger disk" in refusal(
        address(hub, kind), cache
    )
    assert hub.downloads("model.safetensors") + hub.downloads("tiny.tar") == 0


def test_progress_goes_to_the_log_where_there_is_no_terminal(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("fetching.download.LOG_EVERY_S", 0)
    with caplog.at_level("INFO", "fetching"):
        resolve("some/model")
    assert "fetching WEIGHTS=some/model from the Hugging Face hub (some/model)" in caplog.text
    assert "model.safetensors: 0 of 0 MB" in caplog.text
    assert "fetched WEIGHTS=some/model in" in caplog.text


def test_a_missing_network_is_reported(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    use_hub("http://127.0.0.1:9", monkeypatch)
    sentence = refusal("some/model", cache)
    assert "did not give it (ConnectError: [Errno 111] Connection refused); check the network" in sentence


def test_pget_is_used_where_it_is_installed(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    log = tmp_path / "pget.log"
    (programs / "pget").write_text(
        f'#!/bin/sh\necho "$2" >>{log}\ncp {hub.directory}/tiny.tar "$3"\n', encoding="utf-8"
    )
    (programs / "pget").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    assert_is_whole(resolve(address(hub, "tar")).directory, tiny)
    assert log.read_text(encoding="utf-8") == f"{hub.url}/tiny.tar\n"
    assert hub.downloads("tiny.tar") == 0


def test_the_own_download_replaces_a_pget_that_fails(
    hub: Hub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pget").write_text('#!/bin/sh\necho half >"$3"\n', encoding="utf-8")
    (tmp_path / "pget").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert_is_whole(resolve(address(hub, "tar")).directory, tiny)


@pytest.fixture
def official(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the tiny checkpoint the official model: a manifest with its hash, and this server as its sources."""
    content = json.loads(MANIFEST.read_text(encoding="utf-8"))
    path = hub.directory / "model.safetensors"
    content["files"] = {
        "model.safetensors": {"sha256": sha256_of(path)},
        "modules.json": {},
    }
    content["sources"][-1] = {"tar": f"{hub.url}/tiny.tar"}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps(content), encoding="utf-8")
    monkeypatch.setattr("weights.OFFICIAL", read_manifest(manifest))
    return path


def test_the_default_is_the_mirror_without_a_token_and_the_original_with_a_token(
    official: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = resolve()
    assert without.name == f"{OFFICIAL.name}@{OFFICIAL.revision}@sha256:{without.sha256[:12]}"
    assert without.source.startswith("the Hugging Face hub (unsloth/embeddinggemma-300m at revision bfa3c846")
    assert not any("/google/" in request for request in hub.requests)
    shutil.rmtree(without.directory)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with_token = resolve(None)
    assert (with_token.name, with_token.directory) == (without.name, without.directory)
    assert with_token.source.startswith("the Hugging Face hub (google/embeddinggemma-300m at revision 57c266a740f5")
    assert resolve(OFFICIAL.name) == with_token


def test_the_default_tries_the_next_source_and_reports_all_refusals(
    official: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.faults.refusal = (403, "GatedRepo")
    sentence = refusal(None, cache)
    for part in (
        "(google/embeddinggemma-300m at",
        "(unsloth/embeddinggemma-300m at",
        "tiny.tar: the server refuses it",
    ):
        assert part in sentence
    assert "hf_secret" not in sentence
    monkeypatch.setenv("HF_TOKEN", " \n")
    sentence = refusal(None, cache)
    assert "(google/embeddinggemma-300m at" not in sentence
    assert "or set HF_TOKEN to a token of an account that has accepted the licence" in sentence
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.faults.refusal = None
    hub.faults.statuses = [404, 404]
    assert resolve().source.endswith("/tiny.tar")


def test_content_other_than_the_manifests_needs_to_be_accepted(
    official: Path, hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sha256_of(official)
    flip_bit(official)
    (hub.directory / "tiny.tar").unlink()
    sentence = refusal(None, cache)
    assert f"model.safetensors has SHA-256 {sha256_of(official)}, expected {expected}" in sentence
    accepting = sentence.split("set WEIGHTS_SHA256=")[1][:64]
    monkeypatch.setenv("WEIGHTS_SHA256", accepting)
    accepted = resolve()
    assert accepted.sha256 == accepting
    assert OFFICIAL.revision not in accepted.name or accepted.canaries is None
    monkeypatch.delenv("WEIGHTS_SHA256")
    with pytest.raises(WeightsError, match="not the checkpoint in"):
        resolve()
