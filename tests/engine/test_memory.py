"""A start that there is too little memory for is refused in a sentence, before a library ends the process."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine import memory
from engine.contract import DeviceError

LOAD = """
import sys
from pathlib import Path
import engine
try:
    engine.load(Path(sys.argv[1])).embed([[2, 5, 1]])
    print("loaded")
except engine.memory.DeviceError as error:
    print(error)
"""
GROUPS = Path("/sys/fs/cgroup")


def load(directory: Path, *limits: str) -> subprocess.CompletedProcess[str]:
    """Load a checkpoint in a shell that has first set its own limits."""
    command = "; ".join([*limits, 'exec "$@"'])
    return subprocess.run(
        ["sh", "-c", command, "sh", sys.executable, "-c", LOAD, str(directory)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def official_size(small: Path, tmp_path: Path) -> Path:
    """The small checkpoint with a tokenizer as large as the official one: the library aborts while it reads it."""
    for path in small.iterdir():
        if path.name != "tokenizer.json":
            (tmp_path / path.name).symlink_to(path)
    tokenizer = (small / "tokenizer.json").read_bytes()
    (tmp_path / "tokenizer.json").write_bytes(tokenizer + b" " * (16 << 20))
    return tmp_path


@pytest.mark.skipif(sys.platform != "linux", reason="addresses are limited so on Linux only")
@pytest.mark.parametrize("kilobytes", [300_000, 600_000, 800_000])
def test_too_few_addresses_are_told(official_size: Path, kilobytes: int) -> None:
    result = load(official_size, f"ulimit -v {kilobytes}")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"loading {official_size} takes at least 1,")
    assert f"addresses are limited to {kilobytes * 1024:,} bytes, as ulimit -v sets it); give it more" in result.stdout


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of this machine with a limit of memory."""
    folder = GROUPS / "memory" if (GROUPS / "memory").is_dir() else GROUPS
    group = folder / f"embeddinggemma-test-{os.getpid()}"
    limit = "memory.limit_in_bytes" if folder.name == "memory" else "memory.max"
    try:
        group.mkdir()
        (group / limit).write_text(str(200 << 20), encoding="ascii")
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no control group can be made here: {error.strerror}")
    yield group
    group.rmdir()


def test_a_real_control_groups_limit_is_told(official_size: Path, group: Path) -> None:
    result = load(official_size, f"echo $$ > {group}/cgroup.procs")
    assert result.returncode == 0, f"{result.returncode} {result.stderr}"
    assert "of its control group is 209,715,200 bytes, as docker --memory sets it); give it more" in result.stdout


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_max", ".max").replace("_current", ".current").replace("_stat", ".stat")).write_text(
            text
        )


@pytest.mark.parametrize("limited", ["a/b", "a", "."])
def test_the_limit_of_every_group_above_counts(
    tmp_path: Path, small: Path, limited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "groups")
    write(tmp_path / "proc" / "self", cgroup="0::/a/b\n")
    for name in ("a/b", "a", "."):
        limit = str(1 << 30) if name == limited else "max"
        stat = f"anon 1\ninactive_file {600 << 20}\n"  # which the kernel gives up first
        write(tmp_path / "groups" / name, memory_max=limit, memory_current=str(1 << 30), memory_stat=stat)
    memory.check(small)
    write(tmp_path / "groups" / limited, memory_stat=f"inactive_file {50 << 20}\n")
    with pytest.raises(DeviceError, match=r"takes at least 14\d MB of memory, and 52 MB are left \(memory\.max of its"):
        memory.check(small)


def test_a_machine_that_has_no_more_is_told(tmp_path: Path, small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PROC", tmp_path)
    write(tmp_path, meminfo="MemTotal: 1000000 kB\nMemAvailable:   50000 kB\nSwapFree:   50000 kB\n")
    with pytest.raises(DeviceError, match=r"and 102 MB are left \(the machine has no more\)"):
        memory.check(small)


def test_what_a_start_is_said_to_need_is_not_more_than_it_takes(small: Path) -> None:
    """A refusal must never be wrong: a limit of addresses just above what is needed is enough, or fails by a little."""
    code = f"import engine, resource; from pathlib import Path; engine.load(Path({str(small)!r})).embed([[2, 5, 1]])"
    code += "; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    taken = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    resident, _ = memory._needed(small)
    assert resident < int(taken.stdout) * 1024


def test_nothing_limited_nothing_told(small: Path) -> None:
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        assert not list(memory._in_addresses())
    memory.check(small)


FREE_AND_LOAD = """
import re, sys
from pathlib import Path
import engine

def anonymous_bytes():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

pieces = [b"x" * 100_000 for _ in range(4_000)]
last = pieces.pop()  # glibc by itself returns only what lies above the last piece in use
del pieces
before = anonymous_bytes()
loaded = engine.load(Path(sys.argv[1]))
print(before - anonymous_bytes())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are not asked to return memory")
def test_memory_that_was_freed_before_the_first_text_is_given_back(small: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FREE_AND_LOAD, str(small)], capture_output=True, text=True, timeout=120
    )
    assert int(ended.stdout or 0) > 200e6, ended.stderr  # of the 400 MB that were freed; loading took some
