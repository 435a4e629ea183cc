"""The checkpoint that WEIGHTS names, complete and verified on disk: `small`, a directory, a tar or a hub repository."""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from fetching import cache
from fetching.cache import ROOT, Wanted
from fetching.files import (
    CANARIES,
    RECORD,
    Manifest,
    Record,
    WeightsError,
    check_canaries,
    check_complete,
    content_hash,
    differences,
    read_manifest,
)
from settings import masking

__all__ = [
    "MANIFEST", "OFFICIAL", "SECOND", "SMALL", "Checkpoint", "WeightsError", "canaries_of", "measurements", "resolve",
]  # fmt: skip

SMALL = ROOT / "checkpoints" / "small"
MANIFEST = ROOT / "checkpoints" / "manifests" / "embeddinggemma-300m.json"
OFFICIAL = read_manifest(MANIFEST)
"""The official model, at the revision this code was written for. Other revisions are used only when named."""
SECOND = read_manifest(MANIFEST.with_name("embeddinggemma-2.json"))
"""EmbeddingGemma 2, which WEIGHTS names by its repository."""

REPOSITORY = re.compile(r"(?P<repo>\w[\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
# Plain HTTP only from this machine: before its first fetch nothing vouches for a tar's content.
TAR = re.compile(r"(https://|http://([^/@]*@)?(127\.0\.0\.1|localhost)(:\d+)?/).+\.tar(\.gz)?")
HASH_DIGITS = 12
TOKEN = re.compile(r"[\w.~+/=-]*", re.ASCII)
FROM_GOOGLE = (
    "set HF_TOKEN to a token of an account that has accepted the licence, for Google's repository, or try WEIGHTS=small"
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete sentence-transformers directory.

    Vectors of checkpoints with the same `name` may be compared. `source` says where it came from, `sha256` is over the
    names and contents of the files that make the vectors, `canaries` is the file of known vectors, if there is any.
    """

    directory: Path
    name: str
    source: str
    sha256: str
    canaries: Path | None

    def computed_in(self, number_format: str) -> str:
        """Return the model that answers name: this checkpoint in a number format, NAME+float32."""
        return f"{self.name}+{number_format}"


def resolve(weights: str | None = None) -> Checkpoint:
    """Return the checkpoint that `weights` names, fetched if necessary; None or "" is the official model.

    - `small`: the checkpoint in this repository.
    - a directory in sentence-transformers layout.
    - `https://...tar`, which holds such a directory, or the Hugging Face cache of a model.
    - `owner/name` or `owner/name@revision` on the Hugging Face hub.

    Nothing in the image or the cache is fetched again. WEIGHTS_SHA256 refuses any other content. Raises WeightsError in
    one sentence if the checkpoint is unavailable, incomplete, not the pinned content, or not the files that its
    canaries were written for.
    """
    weights = (weights or "").strip()
    try:
        return _resolve(weights)
    except OSError as error:
        raise WeightsError(
            f"{_setting(weights)}: it cannot be read ({error.strerror}); let this user read it, or name another"
        ) from None


def _resolve(weights: str) -> Checkpoint:
    directory = SMALL if weights == "small" else Path(os.path.expanduser(weights))  # leaves an unknown user's ~
    if not weights or not directory.is_dir():
        return _fetched(*cache.find_or_fetch(_wanted(weights)))
    if (directory / RECORD).is_file():
        checkpoint = _fetched(directory, cache.check_fetched(directory))
    else:
        names = check_complete(directory)
        optional = [name for name in OFFICIAL.files if name not in names and (directory / name).is_file()]
        record = cache.record_directory(directory, [*names, *optional])
        checkpoint = _checkpoint(directory, directory.resolve().name, record)
    cache.check_pin(f"WEIGHTS={directory}", checkpoint.sha256)
    return checkpoint


def _setting(weights: str) -> str:
    """Return the setting as errors name it, on one line of at most 200 characters."""
    shown = masking.masked_address(weights)
    return f"WEIGHTS={shown if shown.isprintable() and len(shown) <= 200 else repr(shown[:200])}"


def measurements() -> Path:
    """Return the cached file of how fast this machine is in different ways; it may not exist."""
    return cache.folder() / "number-formats.json"


def _wanted(weights: str) -> Wanted:
    """Return the checkpoint to find or fetch. Raises WeightsError if `weights` cannot name such a checkpoint."""
    token = os.environ.get("HF_TOKEN", "").strip()
    if not TOKEN.fullmatch(token):  # the HTTP client would show it in its error
        raise WeightsError(
            "HF_TOKEN has a quote, a blank or another character that no token has; set it to the token alone"
        )
    if not weights:
        key, asked = _key(OFFICIAL.name, OFFICIAL.revision), f"WEIGHTS unset, {OFFICIAL.name}"
        if token:
            return Wanted(key, asked, OFFICIAL.sources, OFFICIAL)
        sources = [source for source in OFFICIAL.sources if "gated" not in source]  # the gated source needs a token
        return Wanted(key, asked, sources, OFFICIAL, FROM_GOOGLE)
    setting = _setting(weights)
    if TAR.fullmatch(weights):
        # The name, which answers show, has neither user nor password; nor has the hash, which would let others guess.
        scheme, _, rest = weights.partition("://")
        address = rest.rpartition("@")[2]
        stem = re.sub(r"[^\w.-]", "_", urlsplit(f"//{address}").path.rpartition("/")[2].partition(".tar")[0])[:100]
        key = _key(stem, hashlib.sha256(f"{scheme}://{address}".encode()).hexdigest()[:HASH_DIGITS])
        source = {"tar": weights}
    elif match := REPOSITORY.fullmatch(weights):
        sources = [source for manifest in (OFFICIAL, SECOND) for source in manifest.sources]
        pinned = {source["hub"]: source["revision"] for source in sources if "hub" in source}
        repo, revision = match["repo"], match["revision"] or pinned.get(match["repo"])
        key = _key(repo, revision or "main")
        source = {"hub": repo} | ({"revision": revision} if revision else {})
    else:
        raise WeightsError(
            f"{setting}: no such directory, and not the name of a Hugging Face repository (owner/name) or the "
            "address of a tar (https://...tar) either; name a directory in sentence-transformers layout, 'small', or "
            f"leave WEIGHTS unset for {OFFICIAL.name}"
        )
    manifests = [each for each in (OFFICIAL, SECOND) if any(source.items() <= its.items() for its in each.sources)]
    return Wanted(key, setting, [source], manifests[0] if manifests else None)


def _key(name: str, version: str) -> str:
    """Return a folder's name in the cache, from which `_fetched` recovers the checkpoint's name."""
    return f"{name}@{version}".replace("/", "--")


def _fetched(directory: Path, record: Record) -> Checkpoint:
    name = directory.resolve().name.rpartition("@")[0].replace("--", "/")
    revision = record.revision
    if known := _known(record):
        name, revision = known.name, known.revision
    return _checkpoint(directory, f"{name}@{revision}" if revision else name, record)


def _known(record: Record) -> Manifest | None:
    """Return the manifest that these files are of; none while a manifest does not know the hash of its weights."""
    hashed = (each for each in (OFFICIAL, SECOND) if each.files["model.safetensors"].sha256)
    return next((each for each in hashed if not differences(each.files, record.files)), None)


def canaries_of(manifest: Manifest) -> Path:
    """Return where the known vectors of a manifest's checkpoint are, or would be."""
    return manifest.path.with_name(f"{manifest.path.stem}-{CANARIES}")


def _checkpoint(directory: Path, name: str, record: Record) -> Checkpoint:
    canaries = directory / CANARIES
    if known := _known(record):
        canaries = canaries_of(known)
    else:
        check_canaries(directory, record.files)
    sha256 = content_hash(check_complete(directory), record.files)
    source = masking.masked_address(record.source)
    source = f"{source}, commit {record.revision}" if record.revision else source
    versioned = f"{name}@sha256:{sha256[:HASH_DIGITS]}"
    return Checkpoint(directory, versioned, source, sha256, canaries if canaries.is_file() else None)
