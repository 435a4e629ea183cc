"""Small tars that unpack to enormous sizes: each is refused at once, without the memory that it asks for."""

import gzip
import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fetching.download import Unavailable
from fetching.tar import unpack

MODULES = tarfile.TarInfo("modules.json")


def header(name: str, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def long_name(tar: io.BufferedIOBase) -> None:
    tar.write(header("long", tarfile.GNUTYPE_LONGNAME, 256 << 20))
    for _ in range(256):
        tar.write(bytes(1 << 20))


def long_extension(tar: io.BufferedIOBase) -> None:
    tar.write(header("pax", tarfile.XHDTYPE, 256 << 20))
    for _ in range(256):
        tar.write(bytes(1 << 20))


def sparse_map(tar: io.BufferedIOBase) -> None:
    member = tarfile.TarInfo("model.safetensors")
    member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    member.size = 64 << 20
    tar.write(member.tobuf(tarfile.PAX_FORMAT))
    tar.write(b"9" * 9 + b"\n")
    for _ in range(64):
        tar.write(b"1\n" * (1 << 19))


def many_members(tar: io.BufferedIOBase) -> None:
    for block in range(200):
        tar.write(b"".join(header(f"{block}-{i}", tarfile.REGTYPE, 0) for i in range(100)))
    tar.write(header("modules.json", tarfile.REGTYPE, 0) * 1_000)


def many_files(tar: io.BufferedIOBase) -> None:
    tar.write(header("modules.json", tarfile.REGTYPE, 0))
    for i in range(2_000):
        tar.write(header(f"{i}.json", tarfile.REGTYPE, 0))


def passed_over(tar: io.BufferedIOBase) -> None:
    tar.write(header("modules.json", tarfile.REGTYPE, 0))
    tar.write(header("other.bin", tarfile.REGTYPE, 1 << 40))
    tar.write(bytes(1 << 20))


BOMBS: list[tuple[Callable[[io.BufferedIOBase], None], str]] = [
    (long_name, r"its headers have more than 4,194,304 bytes"),
    (long_extension, r"its headers have more than 4,194,304 bytes"),
    (sparse_map, r"its headers have more than 4,194,304 bytes"),
    (many_members, r"its headers have more than 4,194,304 bytes"),
    (many_files, r"it holds 2,001 files, and no checkpoint has more than 1,000"),
    (passed_over, r"its members have more than 68,719,476,736 bytes"),
]


@pytest.mark.parametrize(("write", "problem"), BOMBS, ids=[write.__name__ for write, _ in BOMBS])
@pytest.mark.parametrize("compressed", [True, False], ids=["gz", "plain"])
def test_a_bomb_is_refused_at_once(
    tmp_path: Path, write: Callable[[io.BufferedIOBase], None], problem: str, compressed: bool
) -> None:
    path = tmp_path / "a.tar"
    with gzip.open(path, "wb", compresslevel=1) if compressed else path.open("wb") as tar:
        write(tar)
    before, started = psutil.Process().memory_info().rss, time.process_time()
    with pytest.raises(Unavailable, match=f"the tar was refused: {problem}"):
        unpack(path, tmp_path / "out")
    assert time.process_time() - started < 10
    assert psutil.Process().memory_info().rss - before < 200 << 20
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_a_tar_in_another_compression_is_refused(tmp_path: Path, mode: Any) -> None:
    with tarfile.open(tmp_path / "a.tar", mode) as tar:
        tar.addfile(MODULES)
    with pytest.raises(Unavailable, match=r"the tar cannot be read"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_compressed_tar_of_a_checkpoint_is_unpacked(tmp_path: Path) -> None:
    """A file larger than the limit for headers, whose numbers do not count among them."""
    with tarfile.open(tmp_path / "a.tar", "w:gz", compresslevel=1) as tar:
        tar.addfile(MODULES)
        large = tarfile.TarInfo("model.safetensors")
        large.size = 40 << 20
        tar.addfile(large, io.BytesIO(bytes(large.size)))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == 40 << 20
