"""Which files an input means, and in which order."""

import io
import os
import re
from pathlib import Path

import fsspec
import pytest

from corpus.listing import covers, listed, spooled
from corpus.rows import CorpusError

FILES = [
    "b.txt", "a.txt", "a10.txt", "a2.txt", "year=2024/x.txt", "year=2024/_tmp/x.txt", "_x=1/y.txt", "deep/er/z.txt",
    "_SUCCESS", ".b.txt.crc", "_delta_log/0.jsonl", ".hidden/x.txt", "ö.txt", "Z.txt",
]  # fmt: skip
SHOWN = ["Z.txt", "_x=1/y.txt", "a.txt", "a10.txt", "a2.txt", "b.txt", "deep/er/z.txt", "year=2024/x.txt", "ö.txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("one\n", encoding="utf-8")
    return tmp_path / "in"


def names(*inputs: object) -> list[str]:
    return [file.name for file in listed([*map(str, inputs)])]


def refusal(given: object) -> str:
    with pytest.raises(CorpusError) as raised:
        listed([str(given)])
    return str(raised.value)


def test_a_folders_files_come_by_name_without_hidden_ones(folder: Path) -> None:
    assert names(folder) == names(f"{folder}/") == SHOWN
    assert [file.path for file in listed([f"{folder}/"])] == [f"{folder}/{name}" for name in SHOWN]


def test_globs(folder: Path) -> None:
    assert names(f"{folder}/*.txt") == ["Z.txt", "a.txt", "a10.txt", "a2.txt", "b.txt", "ö.txt"]
    assert names(f"{folder}/**/*.txt") == SHOWN
    assert names(f"{folder}/a?.txt") == ["a2.txt"] and names(f"{folder}/a[2-9].txt") == ["a2.txt"]
    assert names(f"{folder}/*/x.txt") == names(f"{folder}/year=*/x.txt") == ["year=2024/x.txt"]
    assert names(f"{folder}/.hidden/*.txt") == ["x.txt"], "asked for"
    (folder / "odd[1].txt").touch()
    assert names(f"{folder}/odd[1].txt") == [""], "a file of that very name"


def test_relative_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert names("*.txt", "a.txt") == ["Z.txt", "a.txt", "a10.txt", "a2.txt", "b.txt", "ö.txt"]
    assert [file.path for file in listed(["a*.txt"])] == ["a.txt", "a10.txt", "a2.txt"]
    assert [file.path for file in listed(["."])][:2] == ["./Z.txt", "./_x=1/y.txt"]
    assert names(".") == SHOWN
    assert names("../in/deep") == ["er/z.txt"]


def test_several_inputs_share_a_folder(folder: Path) -> None:
    assert names(folder / "b.txt", folder / "a.txt") == ["a.txt", "b.txt"], "in whichever order they are given"
    assert names(folder / "deep", folder / "year=2024") == ["deep/er/z.txt", "year=2024/x.txt"]
    assert names(folder / "deep", folder) == SHOWN, "each once"
    assert names(folder / "a.txt", f"{folder}/./a.txt") == ["a.txt"]


def test_urls(folder: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name in FILES:
        memory.pipe(f"/lake/{name}", b"one\n")
    assert names("memory://lake") == names("memory://lake/**/*.txt") == SHOWN
    assert [file.path for file in listed(["memory://lake/year=*"[:-1] + "*/x.txt"])] == [
        "memory://lake/year=2024/x.txt"
    ]
    assert names("memory://lake/a.txt") == [""]
    assert names("memory://lake/a.txt", folder / "b.txt") == [f"{folder}/b.txt", "memory://lake/a.txt"]
    assert names("https://example.org/a?.txt") == [""] and names(folder.as_uri()) == SHOWN


def test_an_input_without_files_is_refused_by_name(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "_SUCCESS").touch()
    for given in (folder / "empty", "memory://nothing/*.txt"):
        what = "no file matches it" if "*" in str(given) else "the folder has no file, apart from hidden ones"
        assert refusal(given) == f"{given}: {what}; check the path"
    assert refusal(f"{folder}/*.parquet") == f"{folder}/*.parquet: no file matches it; check the path"
    assert re.match(r"nothing://a/\*: cannot be opened: ValueError: Protocol not known", refusal("nothing://a/*"))


def test_a_list_that_cannot_be_had_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError("Access Denied\nby the bucket")

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.glob", fail)
    assert refusal("memory://lake/*.txt").startswith(
        "memory://lake/*.txt: cannot be listed: Access Denied by the bucket; check the address"
    )


def test_a_link_to_a_folder_is_named_and_not_followed(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "deep")
    problem = "it is a link to a folder, which is not followed"
    remedy = "name that folder as an input of its own, or leave the link out by a glob"
    for given in (folder, f"{folder}/*"):
        assert refusal(given) == f"{folder}/link: {problem}; {remedy}"
    assert names(folder / "link") and not any(name.startswith("link/") for name in names(f"{folder}/**/*.txt"))
    (folder / "link").rename(folder / "_link")
    assert names(folder) == SHOWN


def test_a_name_that_is_not_utf8_is_refused_where_ids_have_it(tmp_path: Path) -> None:
    path = tmp_path / b"\xff.txt".decode(errors="surrogateescape")
    path.write_text("one\n", encoding="utf-8")
    assert refusal(tmp_path) == f"{path}: its name is not UTF-8, and ids of rows have it; rename it"
    assert [file.path for file in listed([str(path)])] == [str(path)]


def test_where_an_output_may_not_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for given, path in ((".", "v.parquet"), (str(folder), "deep/v.npy"), ("*.parquet", "v.parquet"), ("**", "a/b")):
        assert covers(given, path)
    for given, path in (("s3://b/", "s3://b/v/a"), ("s3://b/**/*.txt", "s3://b/v/a.txt"), (f"file://{folder}", "a")):
        assert covers(given, path)
    for given, path in (("s3://b/c", "s3://b/cd/a"), ("s3://b/*", "s3://b/c/a"), ("s3://b", "a"), ("deep", "s3://b/a")):
        assert not covers(given, path)
    for given, path in (("deep", "v.parquet"), ("*.txt", "v.parquet"), ("*", "a/b"), ("s3://b/*", "x"), ("-", "-")):
        assert not covers(given, path)


def test_standard_input_is_kept_in_a_file_until_it_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with spooled(io.BytesIO(b"one\n" * 1_000_000)) as file:
        assert Path(file.name).read_bytes() == b"one\n" * 1_000_000
    assert not os.path.exists(file.name)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("tempfile.tempdir", "/nowhere")
        with pytest.raises(CorpusError, match=r"be kept in a file: No such file .*TMPDIR"):
            spooled(io.BytesIO(b"one"))
    monkeypatch.setattr("corpus.listing.copyfileobj", full)
    with pytest.raises(CorpusError, match=r"^standard input: cannot be kept in .*: No space left .*or set TMPDIR to"):
        spooled(io.BytesIO(b"one"))
