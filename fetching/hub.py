"""A repository on the Hugging Face hub as a source of a checkpoint."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers

from fetching import files as content
from fetching.download import DISK_ERRORS, Unavailable, check_free, download, first_line, with_retries
from fetching.files import FileFacts

API_TIMEOUT_S = 20
# No pickles and no code; the texts are the licence's and its conditions.
KEPT = re.compile(r"(.+\.(json|safetensors))|(README\.md|LICEN[CS]E.*|NOTICE.*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """`owner/name` at a commit, tag or branch; None is the main branch."""

    repo: str
    revision: str | None

    @property
    def label(self) -> str:
        """Where it is, in words."""
        return f"the Hugging Face hub ({self.repo}{f' at revision {self.revision}' if self.revision else ''})"

    def fetch(self, work: Path) -> str | None:
        """Download the files to `work/checkpoint` and return the commit. Raises Unavailable."""
        try:
            commit, files = with_retries(self.repo, self._list)
            have = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
            check_free(work, sum(facts.size or 0 for facts in files.values()) - have)
            headers = build_hf_headers()
            for name, facts in files.items():
                url = hf_hub_url(self.repo, name, revision=commit)
                tag = facts.sha256 or facts.blob_id or commit
                download(url, work / "checkpoint" / name, work / "parts" / name, tag, facts.size, headers)
            _check(work / "checkpoint", files)
        except Unavailable:
            raise
        except Exception as error:  # the hub's errors, its HTTP client's and the file system's have no common base
            raise self._unavailable(error) from error
        return commit

    def _list(self) -> tuple[str, dict[str, FileFacts]]:
        info = HfApi().model_info(self.repo, revision=self.revision, files_metadata=True, timeout=API_TIMEOUT_S)
        if info.sha is None:
            raise Unavailable("the hub names no commit", "name a revision")
        return info.sha, {file.rfilename: _facts(file) for file in info.siblings or [] if _is_kept(file.rfilename)}

    def _unavailable(self, error: Exception) -> Unavailable:
        if isinstance(error, GatedRepoError):
            return Unavailable(
                "the repository is gated",
                f"accept the licence at https://huggingface.co/{self.repo} and set HF_TOKEN to a token of that account",
            )
        if isinstance(error, RevisionNotFoundError):
            return Unavailable("there is no such revision", "name one that the repository has")
        if isinstance(error, RepositoryNotFoundError):
            return Unavailable(
                "there is no such repository, or it is private", "check the name, and set HF_TOKEN if it is private"
            )
        if isinstance(error, OfflineModeIsEnabled):
            return Unavailable("it is not in the cache and HF_HUB_OFFLINE is set", "unset it, or name a directory")
        return unavailable(error)


def unavailable(error: Exception) -> Unavailable:
    """Return in words why a server or this machine's disk did not do its part."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return Unavailable(
            f"it cannot be written to the disk ({first_line(error)})",
            "free some space, or set WEIGHTS_CACHE to a folder that can be written",
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):
            return Unavailable(f"the server refuses it ({status})", "check HF_TOKEN and what it may read")
        if status == 404:
            return Unavailable("the server does not have it (404)", "check the address")
        if status == 429:
            return Unavailable("the server has had too many requests (429)", "try again later, or set HF_TOKEN")
    return Unavailable(
        f"it is not in the cache and the server did not give it ({first_line(error)})",
        "check the network, or name a directory that has it",
    )


def _is_kept(name: str) -> bool:
    path = PurePosixPath(name)
    return KEPT.fullmatch(name) is not None and not path.is_absolute() and ".." not in path.parts


def _facts(file: RepoSibling) -> FileFacts:
    if file.lfs is not None:
        return FileFacts(file.lfs.size, file.lfs.sha256)
    return FileFacts(file.size, None, file.blob_id)


def _check(directory: Path, files: dict[str, FileFacts]) -> None:
    """Raise Unavailable when a file is not the hub's; one that the hub has not is left from another time."""
    for path in list(directory.rglob("*")):
        if path.is_file() and path.relative_to(directory).as_posix() not in files:
            path.unlink()
    for name, facts in files.items():
        path = directory / name
        found = content.record_files(directory, [name], {})[name].sha256
        if facts.sha256 not in (None, found):
            path.unlink()
            raise Unavailable(f"{name} has SHA-256 {found} and the hub lists {facts.sha256}", "try again")
        if facts.blob_id is not None and facts.blob_id != (blob := content.blob_id(path)):
            path.unlink()
            raise Unavailable(f"{name} has git blob id {blob} and the hub lists {facts.blob_id}", "try again")
