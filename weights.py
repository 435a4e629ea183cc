"""What WEIGHTS names, as a complete, verified checkpoint on disk: `small`, a directory, a tar or a hub repository."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fetching import cache
from fetching.cache import ROOT, Request
from fetching.files import (
    CANARIES,
    RECORD,
    Record,
    WeightsError,
    check_canaries,
    check_complete,
    content_hash,
    differences,
    read_manifest,
)

__all__ = ["GENUINE", "MANIFEST", "SMALL", "Checkpoint", "WeightsError", "measurements", "resolve"]

SMALL = ROOT / "checkpoints" / "small"
MANIFEST = ROOT / "manifests" / "embeddinggemma-300m.json"
GENUINE = read_manifest(MANIFEST)
"""The model itself, at the revision this code was written against; another one is used only when it is named."""

REPOSITORY = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
# Plain HTTP only from this machine: nothing is known of a tar's content before its first fetch.
TAR = re.compile(r"(https://|http://(127\.0\.0\.1|localhost)[:/]).+\.tar(\.gz)?")
HASH_DIGITS = 12
TOKEN = re.compile(r"[\w.~+/=-]*", re.ASCII)
FROM_GOOGLE = (
    "set HF_TOKEN to a token of an account that has accepted the licence, for Google's repository, or try WEIGHTS=small"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete sentence-transformers directory.

    Vectors of checkpoints with the same `name` may be compared. `source` says where it came from, `sha256` is over the
    names and contents of the files that make the vectors, `canaries` is the file of what it must compute, if any.
    """

    directory: Path
    name: str
    source: str
    sha256: str
    canaries: Path | None

    def computed_in(self, number_format: str) -> str:
        """Return what vectors are said to be of: the name and the number format, NAME+float32."""
        return f"{self.name}+{number_format}"


def resolve(weights: str | None = None) -> Checkpoint:
    """Return the checkpoint that `weights` names, fetching it if need be; None or "" is the genuine one, pinned.

    - `small`: the checkpoint in this repository.
    - a directory in sentence-transformers layout.
    - `https://...tar`, which holds such a directory, or the Hugging Face cache of one.
    - `owner/name` or `owner/name@revision` on the Hugging Face hub.

    What is baked into the image or in the cache is taken from there without any network. WEIGHTS_SHA256 refuses any
    content but its own. Raises WeightsError in one sentence when the checkpoint is not to be had, not complete, not
    the pinned content or not what its canaries were written for.
    """
    weights = (weights or "").strip()
    try:
        return _resolve(weights)
    except OSError as error:
        raise WeightsError(
            f"{_setting(weights)}: it cannot be read ({error.strerror}); let this user read it, or name another"
        ) from None


def _resolve(weights: str) -> Checkpoint:
    directory = SMALL if weights == "small" else Path(os.path.expanduser(weights))  # which leaves an unknown user's ~
    if not weights or not directory.is_dir():
        return _fetched(*cache.find_or_fetch(_request(weights)))
    if (directory / RECORD).is_file():
        checkpoint = _fetched(directory, cache.check_fetched(directory))
    else:
        names = check_complete(directory)
        optional = [name for name in GENUINE.files if name not in names and (directory / name).is_file()]
        record = cache.record_directory(directory, [*names, *optional])
        checkpoint = _checkpoint(directory, directory.resolve().name, record)
    cache.check_pin(f"WEIGHTS={directory}", checkpoint.sha256)
    return checkpoint


def _setting(weights: str) -> str:
    """Return the setting as errors name it, in one line of bearable length."""
    return f"WEIGHTS={weights if weights.isprintable() and len(weights) <= 200 else repr(weights[:200])}"


def measurements() -> Path:
    """Return the file in the cache that keeps how fast this machine is in which number format; it may not be there."""
    return cache.folder() / "number-formats.json"


def _request(weights: str) -> Request:
    """Return what to look for in the cache, or fetch. Raises WeightsError if `weights` names nothing of the kind."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not TOKEN.fullmatch(token):  # the HTTP client would show it in its error
        raise WeightsError(
            "HF_TOKEN has a quote, a blank or another character that no token has; set it to the token alone"
        )
    if not weights:
        key, asked = _key(GENUINE.name, GENUINE.revision), f"WEIGHTS unset, {GENUINE.name}"
        if token:
            return Request(key, asked, GENUINE.sources, GENUINE)
        sources = [source for source in GENUINE.sources if "gated" not in source]  # that one needs a token
        return Request(key, asked, sources, GENUINE, FROM_GOOGLE)
    setting = _setting(weights)
    if TAR.fullmatch(weights):
        stem = re.sub(r"[^\w.-]", "_", weights.rpartition("/")[2].partition(".tar")[0])[:100]
        key = _key(stem, hashlib.sha256(weights.encode()).hexdigest()[:HASH_DIGITS])
        source = {"tar": weights}
    elif match := REPOSITORY.fullmatch(weights):
        pinned = {source["hub"]: source["revision"] for source in GENUINE.sources if "hub" in source}
        repo, revision = match["repo"], match["revision"] or pinned.get(match["repo"])
        key = _key(repo, revision or "main")
        source = {"hub": repo} | ({"revision": revision} if revision else {})
    else:
        raise WeightsError(
            f"{setting}: no such directory, and not the name of a Hugging Face repository (owner/name) or the "
            "address of a tar (https://...tar) either; name a directory in sentence-transformers layout, 'small', or "
            f"leave WEIGHTS unset for {GENUINE.name}"
        )
    is_genuine = any(source.items() <= genuine.items() for genuine in GENUINE.sources)
    return Request(key, setting, [source], GENUINE if is_genuine else None)


def _key(name: str, version: str) -> str:
    """Return the name of a folder in the cache, from which `_fetched` has the checkpoint's name again."""
    return f"{name}@{version}".replace("/", "--")


def _fetched(directory: Path, record: Record) -> Checkpoint:
    name = directory.resolve().name.rpartition("@")[0].replace("--", "/")
    revision = record.revision
    if not differences(GENUINE.files, record.files):
        name, revision = GENUINE.name, GENUINE.revision
    return _checkpoint(directory, f"{name}@{revision}" if revision else name, record)


def _checkpoint(directory: Path, name: str, record: Record) -> Checkpoint:
    canaries = directory / CANARIES
    if differences(GENUINE.files, record.files):
        check_canaries(directory, record.files)
    else:
        canaries = MANIFEST.with_name(f"{MANIFEST.stem}-{CANARIES}")
    sha256 = content_hash(check_complete(directory), record.files)
    source = f"{record.source}, commit {record.revision}" if record.revision else record.source
    versioned = f"{name}@sha256:{sha256[:HASH_DIGITS]}"
    return Checkpoint(directory, versioned, source, sha256, canaries if canaries.is_file() else None)
