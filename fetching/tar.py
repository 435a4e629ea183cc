"""A tar on a web server as a source of a checkpoint: plain files, or the Hugging Face cache with its links."""

import re
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import dirname, join, normpath

from huggingface_hub import constants
from huggingface_hub.utils import get_session, hf_raise_for_status

from fetching.download import Unavailable, check_free, download, download_with_pget, with_retries
from fetching.hub import KEPT, unavailable

SNAPSHOT = re.compile(r"(?:.*/)?snapshots/(?P<revision>[0-9a-f]{40})")
MAX_LINKS = 8


@dataclass(frozen=True, slots=True)
class TarArchive:
    """A tar at an address, which holds one checkpoint."""

    url: str

    @property
    def label(self) -> str:
        """Where it is, in words."""
        return self.url

    def fetch(self, work: Path) -> str | None:
        """Download and unpack to `work/checkpoint`; return the commit that its folders name. Raises Unavailable."""
        path, part = work / "parts" / "archive.tar", work / "parts" / "archive.tar.part"
        try:
            size, tag = with_retries(self.url, self._head)
            have = sum(one.stat().st_size for one in path.parent.glob("archive.tar*"))
            # Both the tar and what is in it.
            check_free(work, max(2 * (size or 0) - have, 0))
            if path.is_file() or part.is_file() or not download_with_pget(self.url, path, size):
                download(self.url, path, part, tag, size)
        except Unavailable:
            raise
        except Exception as error:  # the HTTP client's errors and the file system's have no common base
            raise unavailable(error) from error
        try:
            return unpack(path, work / "checkpoint")
        except Unavailable:
            path.unlink()
            raise
        except OSError as error:
            raise unavailable(error) from error

    def _head(self) -> tuple[int | None, str]:
        """Return the archive's bytes, None where the server does not tell, and a tag that stands for its content."""
        response = get_session().head(
            self.url,
            follow_redirects=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
            headers={"Accept-Encoding": "identity"},
        )
        hf_raise_for_status(response)
        length = response.headers.get("Content-Length")
        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        return int(length) if length else None, f"{self.url} {version} {length}"


def unpack(archive: Path, directory: Path) -> str | None:
    """Write the checkpoint in a tar to the new `directory`; return the commit that its folders name, if they do.

    Links to files of the archive become those files. Raises Unavailable when a member would leave the directory or is
    no file, folder or such link, and when there is not one checkpoint in it.
    """
    shutil.rmtree(directory, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            members = {_checked(member, directory): member for member in tar}
            roots = {dirname(name) for name in members if name.rpartition("/")[2] == "modules.json"}
            if len(roots) != 1:
                raise _refused(f"it holds {len(roots)} checkpoints (folders with modules.json), not one")
            root = roots.pop()
            inside = {name: PurePosixPath(name).relative_to(root).as_posix() for name in members if _under(name, root)}
            files = {
                target: _follow(members, name)
                for name, target in inside.items()
                if KEPT.fullmatch(target) and not members[name].isdir()
            }
            check_free(archive.parent, sum(member.size for member in files.values()))
            for target, member in files.items():
                _write(tar, member, directory / target)
    except (tarfile.TarError, zlib.error, EOFError, ValueError) as error:
        raise Unavailable(f"the tar cannot be read ({error})", "check the address, or fetch it again") from error
    match = SNAPSHOT.fullmatch(root)
    return match["revision"] if match else None


def _refused(why: str) -> Unavailable:
    return Unavailable(f"the tar was refused: {why}", "use one that was packed from the checkpoint's folder")


def _under(name: str, root: str) -> bool:
    return not root or name.startswith(f"{root}/")


def _checked(member: tarfile.TarInfo, directory: Path) -> str:
    """Return the member's name without `./`. Raises Unavailable if it could touch anything outside `directory`."""
    # tarfile's filter would quietly make an absolute name a relative one.
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name).parts:
        raise _refused(f"{member.name} leads out of it")
    try:
        tarfile.data_filter(member, str(directory))
    except tarfile.FilterError as error:
        raise _refused(str(error)) from error
    return normpath(member.name)


def _follow(members: dict[str, tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    """Return the regular file that a member is, or that its links lead to."""
    at = name
    for _ in range(MAX_LINKS):
        member = members.get(at)
        if member is None:
            raise _refused(f"{name} is a link to {at}, which is not in it")
        if member.isreg():
            return member
        if member.issym():
            at = normpath(join(dirname(at), member.linkname))
        elif member.islnk():
            at = normpath(member.linkname)
        else:
            break
    raise _refused(f"{name} is not a file, nor does it lead to one")


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(member)
    if source is None:
        raise _refused(f"{member.name} has no content")
    with source, path.open("wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
