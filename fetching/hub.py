"""A repository on the Hugging Face hub as a source of a checkpoint."""

import re
from pathlib import Path, PurePosixPath

from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.hf_api import RepoSibling
from huggingface_hub.utils import build_hf_headers
from huggingface_hub.utils.sha import git_hash

from fetching.download import Unavailable, check_free, download, with_retries
from fetching.files import MAX_TOKENIZER_BYTES, hash_file

API_TIMEOUT_S = 20
MAX_FILES = 1_000
# No pickles and no code; the texts are the licence and its conditions.
KEPT = re.compile(r"(.+\.(json|safetensors))|(README\.md|LICEN[CS]E.*|NOTICE.*)", re.ASCII)


def label(repo: str, revision: str | None) -> str:
    """Return in words where the checkpoint is."""
    return f"the Hugging Face hub ({repo}{f' at revision {revision}' if revision else ''})"


def fetch(repo: str, revision: str | None, work: Path) -> str:
    """Download `owner/name` at a commit, tag or branch, None being the main branch, and return the commit.

    The files go to `work/checkpoint`; a download that broke off in `work` is resumed. Raises Unavailable, and the HTTP
    client's and the file system's errors.
    """
    commit, files = with_retries(repo, lambda: _list(repo, revision))
    have = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    check_free(work, sum(file.size or 0 for file in files.values()) - have)
    headers = build_hf_headers()
    for name, file in files.items():
        path = work / "checkpoint" / name
        url = hf_hub_url(repo, name, revision=commit)
        kind, listed = ("SHA-256", file.lfs.sha256) if file.lfs else ("git blob id", file.blob_id)
        download(url, path, work / "parts" / name, listed or commit, file.size, headers)
        actual = hash_file(path) if file.lfs else git_hash(path.read_bytes())
        if listed not in (None, actual):
            path.unlink()
            raise Unavailable(f"{name} has {kind} {actual} and the hub lists {listed}; try again")
    for path in list((work / "checkpoint").rglob("*")):
        if path.is_file() and path.relative_to(work / "checkpoint").as_posix() not in files:
            path.unlink()  # left from another commit, whose download broke off
    return commit


def _list(repo: str, revision: str | None) -> tuple[str, dict[str, RepoSibling]]:
    info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=API_TIMEOUT_S)
    if info.sha is None:
        raise Unavailable("the hub names no commit; name a revision")
    files = {file.rfilename: file for file in info.siblings or [] if _is_kept(file.rfilename)}
    large = [name for name, file in files.items() if not file.lfs and (file.size or 0) > MAX_TOKENIZER_BYTES]
    if large or len(files) > MAX_FILES:
        raise Unavailable(
            f"the repository has {len(files):,} files, and {len(large)} texts too large for a checkpoint's"
        )
    return info.sha, files


def _is_kept(name: str) -> bool:
    path = PurePosixPath(name)
    return KEPT.fullmatch(name) is not None and not path.is_absolute() and ".." not in path.parts
