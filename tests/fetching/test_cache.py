"""The cache: several processes, no network, no disk space, processes that are killed, files that are changed."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

import weights
from fetching import cache
from fetching.download import LoggedProgress, Unavailable, check_free
from tests.support.files import flip_bit
from tests.support.hub import Hub, running_hub
from weights import WeightsError, resolve

ROOT = cache.ROOT


@pytest.fixture
def hub(tiny: Path) -> Iterator[Hub]:
    """The tiny checkpoint as a repository, and as a tar, served slowly enough that processes meet."""
    with tarfile.open(tiny / "tiny.tar", "w") as archive:
        archive.add(tiny, ".", filter=lambda member: None if member.name.endswith(".tar") else member)
    with running_hub(tiny) as hub:
        hub.faults.pause_s = 0.005
        yield hub


def start(hub: Hub, *arguments: str, guard: Path | None = None, limit: int | None = None) -> subprocess.Popen[str]:
    """Start fetching_processes. `guard` is a folder first on its path, `limit` the most bytes of a file."""
    settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "", "PYTHONPATH": f"{guard or ''}{os.pathsep}{ROOT}"}

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.fetching_processes", *arguments],
        env=os.environ | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=set_limit,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Return what a process printed; it must have succeeded."""
    output, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return output


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("kind", ["hub", "tar"])
def test_processes_at_once_fetch_once(hub: Hub, count: int, kind: str) -> None:
    named = "some/model" if kind == "hub" else f"{hub.url}/tiny.tar"
    processes = [start(hub, "resolve", named) for _ in range(count)]
    assert len({finish(process) for process in processes}) == 1
    assert hub.downloads("model.safetensors" if kind == "hub" else "tiny.tar") == (3 if kind == "hub" else 1)


def test_a_warm_cache_needs_no_network(hub: Hub, tmp_path: Path) -> None:
    first = finish(start(hub, "resolve", "some/model"))
    hub.requests.clear()
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(
        "import sys\n"
        "def refuse(event, arguments):\n"
        "    if event.startswith('socket.') and event != 'socket.__new__':\n"
        "        raise SystemExit(f'network: {event} {arguments}')\n"
        "sys.addaudithook(refuse)\n",
        encoding="utf-8",
    )
    assert finish(start(hub, "resolve", "some/model", guard=guard)) == first
    assert hub.requests == []
    cold = start(hub, "resolve", "another/model", guard=guard)
    assert "network: socket." in cold.communicate(timeout=600)[1]


def test_a_warm_cache_does_not_import_the_hubs_client(hub: Hub) -> None:
    finish(start(hub, "resolve", "some/model"))
    code = "import sys, weights; weights.resolve('some/model'); sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_weights_in_the_image_come_before_the_cache(
    hub: Hub, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(start(hub, "resolve", "some/model"))
    baked = tmp_path / "baked"
    shutil.copytree(cache, baked)
    monkeypatch.setattr("fetching.cache.BAKED", baked)
    assert resolve("some/model").directory.parent == baked


def test_a_full_disk_is_reported_and_the_next_start_resumes(hub: Hub, cache: Path) -> None:
    process = start(hub, "resolve", "some/model", limit=100_000)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode != 0
    assert "WEIGHTS=some/model: could not be fetched" in errors
    assert "cannot be written to the disk (OSError: [Errno 27] File too large); free some space, or set" in errors
    assert [path.suffix for path in cache.iterdir() if path.is_dir()] == [".partial"]
    finish(start(hub, "resolve", "some/model"))


def test_a_disk_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        Unavailable, match=r"1,000,000,000,000 MB are needed in .* are free; free some, or set WEIGHTS_C"
    ):
        check_free(tmp_path, 10**18)


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("WEIGHTS_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match=r"the cache .*file cannot be written \(.*\); set WEIGHTS_CACHE to a folder"):
        resolve("some/model")


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", ["hub", "tar"])
def test_killed_often_a_fetch_leaves_no_half_checkpoint_and_recovers(hub: Hub, kind: str) -> None:
    hub.faults.pause_s = 0.0005
    named = "some/model" if kind == "hub" else f"{hub.url}/tiny.tar"
    output = finish(start(hub, "kill", named, "75"))
    assert output.startswith("75 rounds, ")
    # On a busy machine the random times may come after the end of a fetch; the random steps do not.
    assert int(output.split()[2]) >= 25


def test_a_killed_process_does_not_keep_the_lock_of_the_progress_bar() -> None:
    process = os.fork()
    if process == 0:
        LoggedProgress.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(process, 0)
    assert LoggedProgress.get_lock().acquire(True, 5)
    LoggedProgress.get_lock().release()


@pytest.mark.parametrize("change", ["bit", "cut", "missing", "no record"])
def test_a_cached_file_that_changed_is_fetched_again(hub: Hub, change: str) -> None:
    first = finish(start(hub, "resolve", "some/model"))
    path = Path(first.split("\n")[0]) / ("fetched.json" if change == "no record" else "model.safetensors")
    content = path.read_bytes()
    if change in ("missing", "no record"):
        path.unlink()
    elif change == "bit":
        flip_bit(path)
    else:
        path.write_bytes(content[:-1])
    again = start(hub, "resolve", "some/model")
    assert finish(again) == first
    if change != "no record":
        assert path.read_bytes() == content


def test_a_changed_file_of_a_fetched_directory_is_refused(hub: Hub) -> None:
    directory = Path(finish(start(hub, "resolve", "some/model")).split("\n")[0])
    flip_bit(directory / "2_Dense" / "model.safetensors")
    with pytest.raises(
        WeightsError, match=r"changed since it was fetched: 2_Dense/model\.safetensors has SHA-256 \w+, exp"
    ):
        resolve(str(directory))


def test_a_copy_with_other_times_is_hashed_once(hub: Hub, tmp_path: Path) -> None:
    directory = Path(finish(start(hub, "resolve", "some/model")).split("\n")[0])
    copy = tmp_path / directory.name
    shutil.copytree(directory, copy, copy_function=shutil.copyfile)
    before = json.loads((copy / "fetched.json").read_text(encoding="utf-8"))
    assert weights.resolve(str(copy)).sha256 == weights.resolve(str(directory)).sha256
    after = json.loads((copy / "fetched.json").read_text(encoding="utf-8"))
    assert before["files"].keys() == after["files"].keys()
    assert before != after


def test_what_nobody_resumes_is_removed_and_what_somebody_may_stays(hub: Hub, cache: Path) -> None:
    for name, days in (("old", 8), ("young", 6), ("locked", 8)):
        part = cache / f"{name}@main.partial" / "parts" / "archive.tar.part"
        record = cache / f"{name}@main" / "fetched.json.4711.partial"
        formats = cache / f"number-formats.json.{days}.partial"
        for path in (part, record, formats):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"half")
        for path in (part, part.parent, part.parents[1], record, formats):
            os.utime(path, (time.time() - days * 24 * 3_600,) * 2)
    with FileLock(cache / "locked@main.lock"):
        finish(start(hub, "resolve", "some/model"))
    left = ["locked@main.partial", "number-formats.json.6.partial", "young@main.partial"]
    assert sorted(path.name for path in cache.glob("*.partial")) == left
    assert [path.parent.name for path in cache.glob("*/*.json.*")] == ["young@main"]
