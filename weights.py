"""A complete checkpoint directory on disk, from what WEIGHTS names: `small`, a directory or a hub repository."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

SMALL = Path(__file__).resolve().parent / "checkpoints" / "small"

GENUINE = "google/embeddinggemma-300m"
# The revision of `GENUINE` this code was written against; another one is used only when it is named.
GENUINE_REVISION = "57c266a740f537b4dc058e1b0cda161fd15afa75"

REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
FILES = ("config.json", "model.safetensors", "modules.json", "sentence_bert_config.json", "tokenizer.json")
# Nothing else is fetched: no pickles, no code.
FETCHED = ["*.json", "*.safetensors"]
HASH_DIGITS = 12


class WeightsError(RuntimeError):
    """Weights that cannot be had: what was tried, why it failed, what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete sentence-transformers directory, and the name under which its vectors may be compared."""

    directory: Path
    name: str


def resolve(weights: str | None = None) -> Checkpoint:
    """Return the checkpoint that `weights` names, fetching it if need be; None or "" is the genuine one, pinned.

    - `small`: the checkpoint in this repository.
    - a directory in sentence-transformers layout; its name carries the SHA-256 of its files.
    - `owner/name` or `owner/name@revision` on the Hugging Face hub; its name carries the commit.

    Raises WeightsError in one sentence when that is not to be had or not complete.
    """
    weights = weights or f"{GENUINE}@{GENUINE_REVISION}"
    if weights == "small":
        return _from_directory(SMALL, "small")
    directory = Path(weights).expanduser()
    if directory.is_dir():
        return _from_directory(directory, directory.resolve().name)
    match = REPOSITORY.fullmatch(weights)
    if match is None or weights.startswith((".", "/", "~")):
        raise WeightsError(
            f"WEIGHTS={weights}: no such directory, and not the name of a Hugging Face repository (owner/name) either; "
            "name a directory in sentence-transformers layout, 'small', or leave WEIGHTS unset for "
            f"{GENUINE}"
        )
    revision = match["revision"] or (GENUINE_REVISION if match["repo"] == GENUINE else None)
    return _from_hub(match["repo"], revision)


def _from_directory(directory: Path, name: str) -> Checkpoint:
    files = _check_complete(directory)
    return Checkpoint(directory, f"{name}@sha256:{content_hash(directory, files)[:HASH_DIGITS]}")


def _from_hub(repo: str, revision: str | None) -> Checkpoint:
    from huggingface_hub import snapshot_download  # a quarter of a second that a directory need not pay

    try:
        directory = Path(snapshot_download(repo, revision=revision, allow_patterns=FETCHED))
    except Exception as error:  # the hub's errors, its HTTP client's and the file system's have no common base
        raise WeightsError(_why_not_fetched(repo, revision, error)) from error
    _check_complete(directory)
    return Checkpoint(directory, f"{repo}@{directory.name}")


def _why_not_fetched(repo: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        why = "the repository is gated"
        remedy = f"accept the licence at https://huggingface.co/{repo} and set HF_TOKEN to a token of that account"
    elif isinstance(error, RevisionNotFoundError):
        why, remedy = "there is no such revision", "name one that the repository has"
    elif isinstance(error, RepositoryNotFoundError):
        why = "there is no such repository, or it is private"
        remedy = "check the name, and set HF_TOKEN if it is private"
    elif isinstance(error, LocalEntryNotFoundError):
        why = f"it is not in the cache and the hub did not give it ({_first_line(error.__cause__ or error)})"
        remedy = "check the network, or name a directory that has it"
    else:
        why = _first_line(error)
        remedy = "check network, disk space and HF_TOKEN, or name a directory that has it"
    at = f" at revision {revision}" if revision else ""
    return f"WEIGHTS={repo}: could not be fetched from the Hugging Face hub{at}: {why}; {remedy}, or try WEIGHTS=small"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def _check_complete(directory: Path) -> list[str]:
    """Return the names of the files that make the vectors. Raises WeightsError naming what is missing."""
    names = [*FILES, *_dense_files(directory)]
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise WeightsError(
            f"{directory}: {', '.join(missing)} missing; a checkpoint is a directory in sentence-transformers layout, "
            "as SentenceTransformer.save writes it"
        )
    return names


def _dense_files(directory: Path) -> list[str]:
    path = directory / "modules.json"
    if not path.is_file():
        return []
    try:
        folders = [module["path"] for module in json.loads(path.read_text(encoding="utf-8"))]
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: not a list of modules with their paths: {error!r}") from error
    dense = [folder for folder in folders if folder.endswith("_Dense")]
    return [f"{folder}/{name}" for folder in dense for name in ("config.json", "model.safetensors")]


def content_hash(directory: Path, files: list[str]) -> str:
    """Return the SHA-256, in hexadecimal, over the names and contents of `files` in `directory`."""
    whole = hashlib.sha256()
    for name in sorted(files):
        with (directory / name).open("rb") as file:
            whole.update(f"{name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()
