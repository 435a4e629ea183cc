"""deploy/'s restrictions, as far as they can be had without Docker: the image's files serve under each of them.

The server runs in a mount namespace of its own, in which the root file system is read-only and /tmp is empty, as the
user that container/compose.yaml names, without capabilities or a way to gain any.
"""

import base64
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from container import probe
from container.make_openapi import ROOT
from container.server import free_port
from tests.support.image import copy_image
from tests.support.servers import eventually, tree

[COMPOSED] = yaml.safe_load((ROOT / "container" / "compose.yaml").read_text(encoding="utf-8"))["services"].values()
USER, GROUP = COMPOSED["user"].split(":")
NAMESPACE = ["unshare", "--mount", "--propagation", "private"]
RESTRICTED = ["setpriv", f"--reuid={USER}", f"--regid={GROUP}", "--clear-groups", "--inh-caps=-all"]
RESTRICTED += ["--ambient-caps=-all", "--bounding-set=-all", "--no-new-privs"]
# Everything that the server needs lies below /mnt, but for Python's own files. Where these are in a folder that other
# users may not enter, as below /root, a readable one takes its place.
ENTER = """
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/src /mnt/venv /mnt/hooks /mnt/cache /mnt/python
mount --bind "$IMAGE" /mnt/src; mount -o remount,bind,ro /mnt/src
mount --bind "$HOOKS" /mnt/hooks
mount --bind "$VENV" /mnt/venv
if [ -n "$HIDDEN" ]; then
    mount --bind "$BASE" /mnt/python
    mount -t tmpfs -o mode=755 tmpfs "$HIDDEN"
    mkdir -p "$BASE"; mount --bind /mnt/python "$BASE"
fi
mount -t tmpfs -o mode=1777,exec,nosuid,nodev tmpfs /mnt/cache
mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmpfs /tmp
mount -o remount,ro /mnt
mount -o remount,bind,ro /
cd /mnt/src
exec "$@"
"""
# Imported at Python's start, after the environment's own hooks: takes away the one that finds the checkout's files.
WITHOUT_CHECKOUT = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
sys.path[:] = [path for path in sys.path if path != {root!r}]
"""


def may_enter_namespaces() -> bool:
    if not all(map(shutil.which, ("unshare", "setpriv", "nsenter"))):
        return False
    command = [*NAMESPACE, "sh", "-c", "mount -t tmpfs tmpfs /mnt && exec true"]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


pytestmark = pytest.mark.skipif(not may_enter_namespaces(), reason="only root may mount and change the user here")


def hidden_ancestor(path: str) -> str:
    """Return the uppermost folder on the way to `path` that other users may not enter, "" where there is none."""
    ancestors = [Path(path), *Path(path).parents][::-1]
    return next((str(each) for each in ancestors if not each.stat().st_mode & 0o001), "")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process, Path]]:
    """A restricted server's URL, its process and its log."""
    folder = tmp_path_factory.mktemp("sandbox")
    image, hooks, log, port = folder / "image", folder / "hooks", folder / "log", free_port()
    copy_image(image)
    hooks.mkdir()
    (hooks / "sitecustomize.py").write_text(WITHOUT_CHECKOUT.format(root=str(ROOT)), encoding="utf-8")
    settings = {name: str(value).replace("/cache", "/mnt/cache") for name, value in COMPOSED["environment"].items()}
    settings |= {"PATH": "/mnt/venv/bin:/usr/bin:/bin", "PYTHONPATH": "/mnt/hooks", "PORT": str(port)}
    settings |= {"WEIGHTS": "small", "HF_ENDPOINT": "http://127.0.0.1:9"}
    settings |= {"OMP_WAIT_POLICY": "passive"}  # the tests need the cores, too
    places = {"IMAGE": str(image), "HOOKS": str(hooks), "VENV": sys.prefix, "BASE": sys.base_prefix}
    places |= {"HIDDEN": hidden_ancestor(sys.base_prefix)}
    command = [*NAMESPACE, "sh", "-c", ENTER, "sh", *RESTRICTED, "env", "-i"]
    command += [f"{name}={value}" for name, value in settings.items()]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command + COMPOSED["command"], env=os.environ | places, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: process.poll() is not None or probe.status(url) == "READY", "the setup ends")
        assert process.poll() is None and probe.status(url) == "READY", log.read_text(encoding="utf-8")
        yield url, psutil.Process(process.pid), log
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def inside(server: psutil.Process, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command where a container's would run: as the server's user, among its files."""
    enter = ["nsenter", "--mount", "--target", str(server.pid), "--wdns=/mnt/src", *RESTRICTED, "env", "-i"]
    environment = ["PATH=/mnt/venv/bin:/usr/bin:/bin", f"PORT={server.environ()['PORT']}"]
    return subprocess.run([*enter, *environment, *command], capture_output=True, text=True, timeout=60)


def test_all_kinds_of_predictions_are_answered(served: tuple[str, psutil.Process, Path]) -> None:
    url, _, log = served
    large = "one two three " * 20_000  # which Cog's server hands over in a file
    for inputs in (
        {"text": "hello"},
        {"texts": [large, "two"]},
        {"texts": ["one", "two"] * 64, "output_format": "array"},
        {"file": "data:text/plain,one%0Atwo"},
        {"file": "data:text/plain;base64," + base64.b64encode(b"one\ntwo").decode(), "output_file": "npy"},
    ):
        answer = httpx.post(f"{url}/predictions", json={"input": inputs}, timeout=120).json()
        assert answer["status"] == "succeeded", answer["error"]
    words = log.read_text(encoding="utf-8")
    assert "Traceback" not in words and "cannot be" not in words and "denied" not in words, words


def test_no_process_has_another_user_or_a_capability(served: tuple[str, psutil.Process, Path]) -> None:
    _, server, _ = served
    for process in tree(server.pid):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert (
            set(facts["Uid"].split()) == {USER} and set(facts["Gid"].split()) == {GROUP} and not facts["Groups"].strip()
        )
        assert {int(facts[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
        assert facts["NoNewPrivs"] == "1"


@pytest.mark.parametrize("folder", ["/", "/mnt/src", "/mnt/src/weights-cache", "/etc", "/var/tmp", "/usr/lib"])
def test_nothing_but_the_two_folders_can_be_written(served: tuple[str, psutil.Process, Path], folder: str) -> None:
    _, server, _ = served
    assert inside(server, "sh", "-c", f"mkdir -p {folder}/made").returncode != 0
    assert inside(server, "sh", "-c", "touch /tmp/a /mnt/cache/a && rm /tmp/a /mnt/cache/a").returncode == 0


def test_the_probes_run_as_the_servers_user(served: tuple[str, psutil.Process, Path]) -> None:
    _, server, _ = served
    for options in ([], ["--live"], ["--end", str(server.pid)]):
        result = inside(server, "python", "container/probe.py", *options)
        assert (result.returncode, result.stdout) == (0, "READY\n"), result.stderr


def test_the_limits_leave_room(served: tuple[str, psutil.Process, Path]) -> None:
    _, server, _ = served
    processes = tree(server.pid)
    threads = sum(process.num_threads() for process in processes)
    assert threads < COMPOSED["pids_limit"] / 4
    assert COMPOSED["mem_limit"] == "8g" and sum(process.memory_info().rss for process in processes) < 2 << 30
