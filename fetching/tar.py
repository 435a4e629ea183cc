"""A tar on a web server as a source of a checkpoint: plain files, or the Hugging Face cache with its links."""

import gzip
import hashlib
import re
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from posixpath import basename, dirname, join, normpath
from typing import IO, Any, cast

from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from fetching.download import Unavailable, check_free, download, download_with_pget, with_retries
from fetching.hub import KEPT, MAX_FILES
from settings.masking import masked_address

SNAPSHOT = re.compile(r"(?:.*/)?snapshots/(?P<revision>[0-9a-f]{40})")
MAX_LINKS = 8
# Python's tarfile trusts an archive: it reads headers of any length and number. The tar of a checkpoint, or of its
# Hugging Face cache, has tens of members.
MAX_HEADER_BYTES = 4 << 20
# The size of all members together, skipped members included: a small .gz can unpack to any size.
MAX_UNPACKED_BYTES = 64 << 30
GZIP = b"\x1f\x8b"
SHOWN_CHARS = 100


class _Bounded:
    """An archive, plain or .gz, as tarfile reads it: within the limit of headers, until `trust` lifts that."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MAX_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises Unavailable when the headers have had more than MAX_HEADER_BYTES."""
        self._left -= max(size, 0)
        if self._left < 0:
            raise _refused(f"its headers have more than {MAX_HEADER_BYTES:,} bytes")
        return bytes(self._file.read(size))

    def seek(self, position: int) -> int:
        """Go to a position. Raises Unavailable beyond MAX_UNPACKED_BYTES."""
        if position > MAX_UNPACKED_BYTES:
            raise _refused(f"its members have more than {MAX_UNPACKED_BYTES:,} bytes")
        return int(self._file.seek(position))

    def tell(self) -> int:
        return int(self._file.tell())

    def trust(self) -> None:
        """Let the members, whose headers have been checked, be read in full."""
        self._left = MAX_UNPACKED_BYTES


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[tarfile.TarFile, _Bounded]]:
    """Open an archive, plain or .gz whatever its name; any other compression is not a tar."""
    with archive.open("rb") as plain:
        is_gzip = plain.read(2) == GZIP
        plain.seek(0)
        bounded = _Bounded(gzip.GzipFile(fileobj=plain) if is_gzip else plain)
        with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as tar:
            yield tar, bounded


def fetch(url: str, work: Path) -> str | None:
    """Download the tar at `url` and unpack it to `work/checkpoint`; return the commit that its folders name, if any.

    A download that broke off in `work` is resumed. Raises Unavailable, and the HTTP client's and the file system's
    errors.
    """
    archive, part = work / "parts" / "archive.tar", work / "parts" / "archive.tar.part"
    size, tag = with_retries(masked_address(url), lambda: _head(url))
    have = sum(path.stat().st_size for path in archive.parent.glob("archive.tar*"))
    check_free(work, 2 * (size or 0) - have)  # both the tar and what is in it
    if archive.is_file() or part.is_file() or not download_with_pget(url, archive, size):
        download(url, archive, part, tag, size)
    try:
        return unpack(archive, work / "checkpoint")
    except Unavailable:
        archive.unlink()
        raise


def _head(url: str) -> tuple[int | None, str]:
    """Return the archive's bytes, None if the server does not tell, and a tag that stands for its content."""
    headers = {"Accept-Encoding": "identity"}
    response = get_session().head(url, follow_redirects=True, timeout=constants.HF_HUB_ETAG_TIMEOUT, headers=headers)
    hf_raise_for_status(response)
    length = response.headers.get("Content-Length")
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    address = hashlib.sha256(url.encode()).hexdigest()  # the tag is kept on the disk, and a URL may have a password
    return int(length) if length else None, f"{address} {version} {length}"


def unpack(archive: Path, directory: Path) -> str | None:
    """Write the checkpoint in a tar to the new `directory`; return the commit that its folders name, if any.

    Links to files of the archive become those files. Raises Unavailable if a member would leave the directory or is
    not a file, folder or such a link, and unless the archive has exactly one checkpoint.
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        with _opened(archive) as (tar, bounded):
            members = {_checked_name(member, directory): member for member in tar}
            roots = {dirname(name) for name in members if basename(name) == "modules.json"}
            if len(roots) != 1:
                raise _refused(f"it holds {len(roots)} checkpoints (folders with modules.json), not one")
            root = roots.pop()
            prefix = f"{root}/" if root else ""
            files = {
                name.removeprefix(prefix): _follow_links(members, name)
                for name, member in members.items()
                if name.startswith(prefix) and KEPT.fullmatch(name.removeprefix(prefix)) and not member.isdir()
            }
            if len(files) > MAX_FILES:
                raise _refused(f"it holds {len(files):,} files, and no checkpoint has more than {MAX_FILES:,}")
            check_free(archive.parent, sum(member.size for member in files.values()))
            bounded.trust()
            for name, member in files.items():
                tar.extract(member.replace(name=name), directory, set_attrs=False, filter="data")
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, RecursionError) as error:
        problem = str(error)[:SHOWN_CHARS]
        raise Unavailable(f"the tar cannot be read ({problem}); check the address, or fetch it again") from error
    match = SNAPSHOT.fullmatch(root)
    return match["revision"] if match else None


def _refused(why: str) -> Unavailable:
    return Unavailable(f"the tar was refused: {why}; use one that was packed from the checkpoint's folder")


def _checked_name(member: tarfile.TarInfo, directory: Path) -> str:
    """Return the member's name without `./`. Raises Unavailable if it could touch anything outside `directory`."""
    # tarfile's filter would silently turn an absolute name into a relative name.
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name).parts:
        raise _refused(f"{member.name[:SHOWN_CHARS]} leads out of it")
    try:
        tarfile.data_filter(member, str(directory))
    except tarfile.FilterError as error:
        raise _refused(str(error)[: 2 * SHOWN_CHARS]) from error
    return normpath(member.name)


def _follow_links(members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    """Return the regular file that a member is, or to which its links lead."""
    target = name
    for _ in range(MAX_LINKS):
        member = members.get(target)
        if member is None:
            raise _refused(f"{name[:SHOWN_CHARS]} is a link to {target[:SHOWN_CHARS]}, which is not in it")
        if member.isreg():
            return member
        if member.isdir():
            break
        # A symbolic link is relative to its folder, a hard link to the archive; `_checked_name` refuses the others.
        target = normpath(join(dirname(target), member.linkname) if member.issym() else member.linkname)
    raise _refused(f"{name[:SHOWN_CHARS]} is not a file, nor does it lead to one")
