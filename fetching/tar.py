"""A tar on a web server as a source of a checkpoint: plain files, or the Hugging Face cache with its links."""

import re
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from posixpath import basename, dirname, join, normpath

from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from fetching.download import Unavailable, check_free, download, download_with_pget, with_retries
from fetching.hub import KEPT

SNAPSHOT = re.compile(r"(?:.*/)?snapshots/(?P<revision>[0-9a-f]{40})")
MAX_LINKS = 8


def fetch(url: str, work: Path) -> str | None:
    """Download the tar at `url` and unpack it to `work/checkpoint`; return the commit that its folders name, if any.

    What `work` holds of the tar already is resumed. Raises Unavailable, and the HTTP client's and the file system's
    errors.
    """
    archive, part = work / "parts" / "archive.tar", work / "parts" / "archive.tar.part"
    size, tag = with_retries(url, lambda: _head(url))
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
    """Return the archive's bytes, None where the server does not tell, and a tag that stands for its content."""
    headers = {"Accept-Encoding": "identity"}
    response = get_session().head(url, follow_redirects=True, timeout=constants.HF_HUB_ETAG_TIMEOUT, headers=headers)
    hf_raise_for_status(response)
    length = response.headers.get("Content-Length")
    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
    return int(length) if length else None, f"{url} {version} {length}"


def unpack(archive: Path, directory: Path) -> str | None:
    """Write the checkpoint in a tar to the new `directory`; return the commit that its folders name, if any.

    Links to files of the archive become those files. Raises Unavailable when a member would leave the directory or is
    no file, folder or such link, and when there is not exactly one checkpoint in it.
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
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
            check_free(archive.parent, sum(member.size for member in files.values()))
            for name, member in files.items():
                tar.extract(member.replace(name=name), directory, set_attrs=False, filter="data")
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise Unavailable(f"the tar cannot be read ({error}); check the address, or fetch it again") from error
    match = SNAPSHOT.fullmatch(root)
    return match["revision"] if match else None


def _refused(why: str) -> Unavailable:
    return Unavailable(f"the tar was refused: {why}; use one that was packed from the checkpoint's folder")


def _checked_name(member: tarfile.TarInfo, directory: Path) -> str:
    """Return the member's name without `./`. Raises Unavailable if it could touch anything outside `directory`."""
    # tarfile's filter would quietly make an absolute name a relative one.
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name).parts:
        raise _refused(f"{member.name} leads out of it")
    try:
        tarfile.data_filter(member, str(directory))
    except tarfile.FilterError as error:
        raise _refused(str(error)) from error
    return normpath(member.name)


def _follow_links(members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    """Return the regular file that a member is, or that its links lead to."""
    target = name
    for _ in range(MAX_LINKS):
        member = members.get(target)
        if member is None:
            raise _refused(f"{name} is a link to {target}, which is not in it")
        if member.isreg():
            return member
        if member.isdir():
            break
        # A symbolic link is relative to its folder, a hard link to the archive; `_checked_name` lets nothing else by.
        target = normpath(join(dirname(target), member.linkname) if member.issym() else member.linkname)
    raise _refused(f"{name} is not a file, nor does it lead to one")
