"""Unpacking tars: packed from a folder, in the layout of the Hugging Face cache, and hostile."""

import io
import tarfile
from pathlib import Path

import pytest

from fetching.download import Unavailable
from fetching.tar import unpack

REVISION = "64614b0b8b64f0c6c1e52b07e4e9a4e8fe4d2da2"


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    """Return a member that is a symbolic link or of another kind without content."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def pack(path: Path, *members: tuple[str, bytes] | tarfile.TarInfo) -> Path:
    """Write a tar of files (name, content) and other members."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                name, content = member
                header = tarfile.TarInfo(name)
                header.size = len(content)
                tar.addfile(header, io.BytesIO(content))
    return path


def contents(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory, which holds no links."""
    assert not any(path.is_symlink() for path in directory.rglob("*"))
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("folder", ["", "./", "a folder/", "a/b/"])
def test_a_packed_folder_is_unpacked_without_files_that_are_never_read(tmp_path: Path, folder: str) -> None:
    names = ["modules.json", "2_Dense/model.safetensors", "README.md", "model.bin", "run.py", "onnx/model.onnx"]
    tar = pack(tmp_path / "a.tar", *[(folder + name, name.encode()) for name in names], ("outside.json", b""))
    assert unpack(tar, tmp_path / "out") is None
    expected = names[:3] + ["outside.json"] * (folder in ("", "./"))
    assert set(contents(tmp_path / "out")) == set(expected)


def test_links_of_the_hubs_cache_become_plain_files(tmp_path: Path) -> None:
    root = "models--google--embeddinggemma-300m"
    snapshot = f"{root}/snapshots/{REVISION}"
    tar = pack(
        tmp_path / "a.tar",
        (f"{root}/refs/main", REVISION.encode()),
        (f"{root}/blobs/aa", b"modules"),
        link(f"{snapshot}/modules.json", "../../blobs/aa"),
        link(f"{snapshot}/2_Dense/model.safetensors", "../../../blobs/bb"),
        link(f"{snapshot}/config.json", f"{root}/blobs/bb", tarfile.LNKTYPE),
        link(f"{snapshot}/pytorch_model.bin", "../../blobs/aa"),
        (f"{root}/blobs/bb", b"tensors"),
    )
    assert unpack(tar, tmp_path / "out") == REVISION
    assert contents(tmp_path / "out") == {
        "modules.json": b"modules",
        "2_Dense/model.safetensors": b"tensors",
        "config.json": b"tensors",
    }


def test_files_have_this_machines_permissions_not_the_tars(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    member = tarfile.TarInfo("modules.json")
    member.mode = 0o4400
    unpack(pack(tmp_path / "a.tar", member), tmp_path / "out")
    assert (tmp_path / "out" / "modules.json").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("member", "problem"),
    [
        (("../a.json", b""), "leads out of it"),
        (("folder/../../a.json", b""), "leads out of it"),
        (("/etc/a.json", b""), "leads out of it"),
        (link("folder/a.json", "/etc/passwd"), "absolute path"),
        (link("folder/a.json", "../../passwd"), "outside the destination"),
        (link("folder/a.json", "/etc/passwd", tarfile.LNKTYPE), "absolute path"),
        (link("folder/a.json", "../passwd", tarfile.LNKTYPE), "outside the destination"),
        (link("folder/a.json", "nowhere.json"), "is not in it"),
        (link("folder/a.json", "nowhere.json", tarfile.LNKTYPE), "is not in it"),
        (link("folder/a.json", "a.json"), "is not a file, nor does it lead to one"),
        (link("folder/a.json", "."), "is not in it"),
        (link("folder/a.json", "", tarfile.CHRTYPE), "is a special file"),
        (link("folder/a.json", "", tarfile.BLKTYPE), "is a special file"),
        (link("folder/a.json", "", tarfile.FIFOTYPE), "is a special file"),
        (("other/modules.json", b"[]"), "it holds 2 checkpoints"),
    ],
    ids=lambda value: value.replace(" ", "_") if isinstance(value, str) else "",
)
def test_a_hostile_tar_is_refused_and_touches_nothing(
    tmp_path: Path, member: tuple[str, bytes] | tarfile.TarInfo, problem: str
) -> None:
    tar = pack(tmp_path / "a.tar", ("folder/modules.json", b"[]"), member, ("folder/b.json", b""))
    with pytest.raises(Unavailable, match=rf"the tar was refused: .*{problem}.*; use one that was packed from the"):
        unpack(tar, tmp_path / "deep" / "out")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar"]


def test_a_link_through_a_folder_link_is_not_followed_outside(tmp_path: Path) -> None:
    tar = pack(
        tmp_path / "a.tar",
        ("folder/modules.json", b"[]"),
        link("folder/sub", "."),
        ("folder/sub/a.json", b"plain"),
    )
    unpack(tar, tmp_path / "out")
    assert contents(tmp_path / "out") == {"modules.json": b"[]", "sub/a.json": b"plain"}


def test_a_tar_that_promises_more_than_the_disk_holds_is_refused(tmp_path: Path) -> None:
    member = tarfile.TarInfo("model.safetensors")
    member.size = (64 << 30) - 4096
    path = tmp_path / "a.tar"
    path.write_bytes(pack(path, ("modules.json", b"[]")).read_bytes()[:1024] + member.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(
        Unavailable, match=r"MB are needed in .* are free; free some, or set WEIGHTS_CACHE|cannot be read"
    ):
        unpack(path, tmp_path / "out")


def test_a_file_that_is_no_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"<html>not here</html>" * 100)
    with pytest.raises(Unavailable, match="the tar cannot be read"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
