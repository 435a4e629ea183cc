"""What a prediction of a file may reach and leave: no internal address, no file of a broken download, gone client or
killed server; and a folder of predictions that is full or read-only is told."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import pytest

from container import probe
from container.prediction_folders import FOLDER, GRACE_S
from container.server import Server, free_port, running_server
from tests.support.servers import eventually, tree, wait_until_ready
from tests.support.sites import Site, running_site

ROOT = Path(__file__).resolve().parents[2]
REFUSED = (
    "FileRefused: file: its address is not a public one, and this server fetches from no other; give the file within "
    "the request, as a data: URL, or let the server's FILE_ADDRESSES list the address"
)


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


def ids(count: int) -> list[str]:
    return [f"left-{uuid4().hex}" for _ in range(count)]


def files_of(ids: list[str]) -> list[Path]:
    """Return the files that lie in these predictions' folders."""
    return [path for each in ids for path in (FOLDER / each).rglob("*") if not path.is_dir()]


def test_cog_fetches_nothing_by_itself_and_no_internal_address_is_asked(site: Site) -> None:
    """Should this fail after an update of Cog, it fetches what is a string to it: see the end of predict.py."""
    port = site.url.rpartition(":")[2]
    with running_site() as other, running_server("small") as server:
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433"):
            answer = server.predict({"file": f"http://{host}:{port}/in.txt"})
            assert answer["status"] == "failed" and answer["error"].endswith(REFUSED), answer
        answer = server.predict({"file": f"{other.url}/to?{site.url}/in.txt"})
        assert answer["status"] == "failed" and answer["error"].endswith(REFUSED), answer
        assert (site.heads, other.heads) == ([], [])


def test_broken_downloads_and_gone_clients_leave_no_file(site: Site, server: Server, temporary: Path) -> None:
    before = sorted(temporary.rglob("*"))
    broken, gone = ids(4), ids(4)
    for each, path in zip(broken, ("cut.txt", "cut-chunk.txt", "none.txt", "in.txt"), strict=True):
        answer = _ask(server, each, f"{site.url}/{path}")
        assert answer["status"] == ("succeeded" if path == "in.txt" else "failed"), answer
    for each, path in zip(gone, ("trickle.txt", "trickle-head.txt", "silent.txt", "endless.txt"), strict=True):
        _ask_and_leave(server, each, f"{site.url}/{path}", site)
    for _ in (*broken, *gone):
        assert site.ended.acquire(timeout=15), "the download goes on"
    answers = {FOLDER / broken[-1] / "embeddinggemma"}  # which is sent, and removed when it surely was
    eventually(
        lambda: all(path.parents[1] in answers for path in files_of(broken + gone)), "no download is left behind"
    )
    assert sorted(temporary.rglob("*")) == before
    assert server.predict({"text": "still here"})["status"] == "succeeded"


@pytest.mark.fuzz
def test_what_a_killed_server_was_fetching_is_removed_by_the_next(site: Site, tmp_path: Path) -> None:
    settings = {"FILE_ADDRESSES": "127.0.0.1", "TMPDIR": str(tmp_path)}
    [killed] = ids(1)
    with running_server("small", settings=settings) as server, ThreadPoolExecutor(1) as pool:
        before = sorted(tmp_path.rglob("*"))
        asked = pool.submit(_ask, server, killed, f"{site.url}/trickle.txt")
        eventually(lambda: files_of([killed]), "the download has begun")
        processes = tree(server.process.pid)
        for process in processes:  # or one would answer for another that is killed before it
            process.suspend()
        for process in reversed(processes):
            process.kill()
        with pytest.raises(httpx.HTTPError):
            asked.result()
    assert files_of([killed]) and sorted(tmp_path.rglob("*")) == before
    os.utime(FOLDER / killed, (time.time() - GRACE_S - 1,) * 2)
    with running_server("small", settings=settings):
        eventually(lambda: not (FOLDER / killed).exists(), "its folder is gone")


def test_an_id_that_leads_elsewhere_fails_its_prediction_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    for large in (False, True):  # of which Cog's server writes both question and answer to files
        texts = [f"text {i} {'of many words ' * 2_000 * large}" for i in range(500)] if large else ["a"]
        body = {"id": str(tmp_path / "elsewhere"), "input": {"texts": texts}}
        answer = httpx.post(f"{server.url}/predictions", json=body, timeout=60)
        if answer.status_code == 200:  # the front has not refused it
            assert "IdRefused: id: it leads out of the folder of predictions; give one of" in answer.json()["error"]
        assert list(tmp_path.iterdir()) == []


def _ask(server: Server, name: str, url: str) -> dict[str, str]:
    body = {"id": name, "input": {"file": url}}
    return dict(httpx.put(f"{server.url}/predictions/{name}", json=body, timeout=60).json())


def _ask_and_leave(server: Server, name: str, url: str, site: Site) -> None:
    """Leave when the site has been asked for the file."""
    asked, address = len(site.heads), httpx.URL(server.url)
    body = json.dumps({"id": name, "input": {"file": url}})
    head = [f"PUT /predictions/{name} HTTP/1.1", "Host: x", "Content-Type: application/json"]
    with socket.create_connection((address.host, address.port or 80)) as connection:
        connection.sendall("\r\n".join([*head, f"Content-Length: {len(body)}", "", body]).encode())
        eventually(lambda: len(site.heads) > asked, "the site is asked")


class Within:
    """A server that sees a folder of predictions of its own, 64 KiB large."""

    def __init__(self, log: Path) -> None:
        FOLDER.mkdir(parents=True, exist_ok=True)
        self.port, self.log = free_port(), log
        mount = 'mount -t tmpfs -o size=64k,mode=1777 tmpfs "$0" && exec "$@"'
        # Without the supervisor, which would start an unhealthy server again.
        serve = f"from container.server import start; start({self.port}, 'small').wait()"
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(FOLDER)]
        command += [sys.executable, "-c", serve]
        with log.open("wb") as output:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output)
        self.url = f"http://127.0.0.1:{self.port}"

    def do(self, command: str) -> None:
        """Run a shell's command in the folder."""
        inside = ["nsenter", "--target", str(self.process.pid), "--mount", "sh", "-c", f"cd {FOLDER} && {command}"]
        subprocess.run(inside, check=True, capture_output=True)


@pytest.fixture
def within(tmp_path: Path) -> Iterator[Within]:
    if not shutil.which("unshare") or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("this user cannot mount anything")
    server = Within(tmp_path / "log")
    try:
        wait_until_ready(server.url)
        yield server
    finally:
        for process in reversed(tree(server.process.pid)):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        server.process.wait()


@pytest.mark.fuzz
def test_a_folder_that_becomes_full_or_read_only_is_told_until_it_is_mended(within: Within) -> None:
    breaks = {"dd if=/dev/zero of=full bs=1k || true": "rm full", "mount -o remount,ro .": "mount -o remount,rw ."}
    for number, (break_it, mend_it) in enumerate(breaks.items(), 1):
        within.do(break_it)
        eventually(lambda: probe.status(within.url) == "UNHEALTHY", "it is noticed")
        within.do(mend_it)
        eventually(lambda: probe.status(within.url) == "READY", "that it is mended is noticed")
        log = within.log.read_text(encoding="utf-8")
        assert log.count(f"unhealthy: {FOLDER}: Cog's server keeps every prediction there") == number
        assert log.count(f"healthy again: {FOLDER}") == number
    assert "(No space left on device); make room there, remove it, or have its owner set its mode to 1777" in log
    assert "(Read-only file system)" in log
