"""Which files a corpus has: paths, URLs, folders and globs to files, in an order that does not change."""

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import PurePath
from shutil import copyfileobj
from typing import BinaryIO
from urllib.parse import unquote

from fsspec.utils import glob_translate

from corpus.rows import CorpusError
from corpus.sources import file_system, is_single, name_of, reason

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
"""How lakes write null in a folder's name."""
MAGIC = "*?["


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A file of a corpus. Messages have its `path`, a local path or a URL.

    `name` tells its rows from those of other files: its path below the folder that all inputs share, "" where a single
    file was named. `partition` are the columns of its folders' names (`key=value`).
    """

    path: str
    name: str = ""
    partition: Mapping[str, str | None] = field(default_factory=dict)


def listed(inputs: Sequence[str]) -> list[ListedFile]:
    """Return the files of paths, URLs, folders and globs, each once, by name.

    In folders and globs, what begins with "." or "_" is passed over, as lakes do, unless it is a `_key=value` folder.
    Raises CorpusError for a folder or glob without a file, and for a name that ids cannot have.
    """
    roots, paths = [], dict[str, None]()
    for given in inputs:
        root, found = _found(given)
        if not found:
            what = "no file matches it" if _is_glob(given) else "the folder has no file, apart from hidden ones"
            raise CorpusError(given, what, "check the path")
        roots.append(_place(root))
        paths |= dict.fromkeys(found)
    if list(paths) == list(inputs) and len(paths) == 1:
        return [ListedFile(inputs[0], "", _partition(inputs[0]))]
    if strange := [path for path in paths if not is_utf8(path)]:
        raise CorpusError(strange[0], "its name is not UTF-8, and ids of rows have it", "rename it")
    levels = zip(*(root.split("/") for root in roots), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len({*level}) == 1, levels))
    named = {"/".join(_place(path).split("/")[shared:]): path for path in paths}
    return [ListedFile(path, name, _partition(path)) for name, path in sorted(named.items())]


def is_utf8(name: str) -> bool:
    """Return whether a name that the system gave as bytes was UTF-8: Python has a half surrogate for any other byte."""
    return not any("\udc80" <= character <= "\udcff" for character in name)


def covers(given: str, path: str) -> bool:
    """Return whether a file at `path`, of this machine or at a URL, would be among the files of an input."""
    given = given.removeprefix("file://")
    if given == "-" or ("://" in given) != ("://" in path):
        return False
    if _is_glob(given):
        return re.fullmatch(glob_translate(_place(given)), _place(path)) is not None
    if "://" in given:
        return f"{path}/".startswith(f"{given.rstrip('/')}/")
    return PurePath(os.path.realpath(path)).is_relative_to(os.path.realpath(given))


def spooled(stream: BinaryIO) -> "tempfile._TemporaryFileWrapper[bytes]":
    """Return a temporary file, deleted when closed, with all of a stream, as a corpus is read more than once."""
    with ExitStack() as opened:
        try:
            file = opened.enter_context(tempfile.NamedTemporaryFile(prefix="corpus-"))
            copyfileobj(stream, file, 1 << 20)
            file.flush()
        except OSError as error:
            remedy = "make room, or set TMPDIR to a folder with room"
            raise CorpusError("standard input", f"cannot be kept in a file: {reason(error)}", remedy) from error
        opened.pop_all()
    return file


def _found(given: str) -> tuple[str, list[str]]:
    """Return the folder above all files of an input, and their paths."""
    if not _is_glob(given):
        folder = given.rstrip("/") or "/"
        is_folder = not is_single(given) and (os.path.isdir(given) if "://" not in given else _is_remote_folder(given))
        return (folder, _visible(folder, None)) if is_folder else (given.rpartition("/")[0], [given])
    parts = given.split("/")
    fixed = next(i for i, part in enumerate(parts) if any(sign in part for sign in MAGIC))
    return "/".join(parts[:fixed]), _visible("/".join(parts[:fixed]), given)


def _is_glob(given: str) -> bool:
    return any(sign in given for sign in MAGIC) and not is_single(given) and not os.path.exists(given)


def _is_remote_folder(url: str) -> bool:
    files, inner = file_system(url, url)
    with suppress(Exception):  # of another library: whoever opens the file says what is wrong
        return bool(files.isdir(inner))
    return False


def _visible(folder: str, pattern: str | None) -> list[str]:
    """Return the paths of the files in a folder that are not hidden, or of those that match a pattern."""
    files, inner = file_system(folder or ".", pattern or folder)
    start = f"{folder.rstrip('/')}/" if folder else ""
    try:
        within = files.find if pattern is None else files.glob
        found = within(inner if pattern is None else files._strip_protocol(pattern), detail=True)
    except Exception as error:  # of another library
        remedy = "check the address, the network and what may be read there"
        raise CorpusError(pattern or folder, f"cannot be listed: {reason(error)}", remedy) from error
    paths = []
    for path, facts in found.items():
        below = path[len(inner) :].lstrip("/")
        if facts["type"] == "directory" or path.endswith("/") or any(map(_is_hidden, below.split("/"))):
            continue
        if facts.get("islink") and os.path.isdir(path):
            remedy = "name that folder as an input of its own, or leave the link out by a glob"
            raise CorpusError(f"{start}{below}", "it is a link to a folder, which is not followed", remedy)
        paths.append(f"{start}{below}")
    return paths


def _is_hidden(part: str) -> bool:
    return part.startswith(".") or (part.startswith("_") and "=" not in part)


def _place(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _partition(path: str) -> dict[str, str | None]:
    """Return the columns that the names of folders hold, as strings, since names have no types."""
    pairs = [part.partition("=") for part in name_of(path).split("/")[:-1] if part.partition("=")[1] and part[0] != "="]
    return {unquote(key): None if value == NO_VALUE else unquote(value) for key, _, value in pairs}
