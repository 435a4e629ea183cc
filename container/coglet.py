"""Cog's server as a process on this machine, with the environment and the schema that an image gives it."""

import atexit
import fcntl
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from container import supervisor
from container.supervisor import ROOT, ServerError

OPENAPI = ROOT / "container" / "openapi.json"
# Where Cog's server looks for its schema, relative to the folder it starts in.
SCHEMA = Path(".cog") / "openapi_schema.json"
# The variables that `cog build` sets in an image, from cog.yaml and predict.py.
IMAGE = {
    "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
    "COG_MAX_CONCURRENCY": "256",
    "TOKIO_WORKER_THREADS": "1",
    "RUST_LOG": "coglet=info,coglet::prediction=off,coglet::webhook=off,coglet_worker=info,coglet_worker::schema=off,"
    "coglet_worker::protocol=off",
}
FOLDER_PREFIX = "embeddinggemma-cog-"


def start(
    port: int,
    weights: str | None,
    log: Path | None = None,
    options: Sequence[str] = ("--host", "127.0.0.1"),
    settings: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start Cog's server as its image does, in a session of its own, and return at once.

    `settings` adds environment variables and `options` arguments; the log goes to the file `log`, if given.
    """
    environment = environment_of(weights, settings) | {"PORT": str(port)}
    if not environment.get("API_HOST", "").strip():
        environment["API_HOST"] = options[options.index("--host") + 1].strip("[]")
    return supervisor.launch("cog.server.http", options, environment, folder(), log)


def environment_of(weights: str | None, settings: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return a server's environment: the image's, overridden by this process's, then by `weights` and `settings`."""
    # Cog's server starts its worker as plain `python`, which must be this interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    environment = IMAGE | os.environ | {"PATH": path}
    if weights is not None:
        environment["WEIGHTS"] = weights
    return environment | dict(settings or {})


def free_address() -> tuple[str, int]:
    """Return a loopback address and a free port of it that nobody finds by trying.

    A web page open on this machine could send `POST /shutdown` to each port of 127.0.0.1.
    """
    host = f"127.{secrets.randbelow(256)}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"
    with socket.socket() as listener:
        try:
            listener.bind((host, 0))
        except OSError:  # systems other than Linux have only 127.0.0.1
            listener.bind(("127.0.0.1", 0))
        found, port = listener.getsockname()
        return str(found), int(port)


def schema() -> Path:
    """Return the path of the model's OpenAPI document; an image has it only where Cog's server looks for it."""
    return OPENAPI if OPENAPI.exists() else ROOT / SCHEMA


def folder() -> Path:
    """Return a folder to start Cog's server in: this one with the schema in it, or links to it if it is read-only."""
    if not OPENAPI.exists():  # as in an image, which has the schema already
        return ROOT
    try:
        (ROOT / SCHEMA).parent.mkdir(exist_ok=True)
        # In one step, as another server may start here at the same time.
        with tempfile.TemporaryDirectory(dir=(ROOT / SCHEMA).parent) as temporary:
            Path(shutil.copy(OPENAPI, temporary)).replace(ROOT / SCHEMA)
    except OSError:
        return _folder_of_links()
    return ROOT


@cache
def _folder_of_links() -> Path:
    """Return a folder of links to this one's files, with the schema. The next server removes it if this one cannot."""
    try:
        _remove_left()
        links = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
        fcntl.flock(os.open(links, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)  # until this process ends
        atexit.register(shutil.rmtree, links, ignore_errors=True)
        for entry in ROOT.iterdir():
            if entry.name != SCHEMA.parts[0]:
                (links / entry.name).symlink_to(entry)
        (links / SCHEMA).parent.mkdir()
        shutil.copy(OPENAPI, links / SCHEMA)
    except OSError as error:
        raise ServerError(
            f"{ROOT}: neither it nor a temporary folder can be written ({error.strerror}), and Cog's server reads its "
            "schema there; let this user write one of them"
        ) from None
    return links


def _remove_left() -> None:
    """Remove the folders of links that ended processes left."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):
            lock = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_uid == os.getuid():
                    shutil.rmtree(left)
            finally:
                os.close(lock)
