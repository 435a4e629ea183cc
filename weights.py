"""A complete, verified checkpoint on disk, from what WEIGHTS names: `small`, a directory, a tar or a hub repository."""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from fetching import cache
from fetching import files as content
from fetching.cache import ROOT, Source, Wanted
from fetching.files import RECORD, Record, WeightsError, read_manifest

__all__ = ["GENUINE", "SMALL", "Checkpoint", "WeightsError", "resolve"]

logger = logging.getLogger(__name__)

SMALL = ROOT / "checkpoints" / "small"
MANIFEST = ROOT / "manifests" / "embeddinggemma-300m.json"
GENUINE = read_manifest(MANIFEST)
"""The model itself, at the revision this code was written against; another one is used only when it is named."""

REPOSITORY = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?", re.ASCII)
# Plain HTTP only from this machine: what a tar holds is taken on its first fetch as it comes.
TAR = re.compile(r"(https://|http://(127\.0\.0\.1|localhost)[:/]).+\.tar(\.gz)?")
HASH_DIGITS = 12
# Hashing less than this at every start costs a few hundredths of a second.
HASHED_ANEW_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete sentence-transformers directory.

    `name` is that under which its vectors may be compared, `source` says where it came from, `sha256` is over the names
    and contents of the files that make the vectors, `canaries` is the file of what it must compute, if there is one.
    """

    directory: Path
    name: str
    source: str
    sha256: str
    canaries: Path | None


def resolve(weights: str | None = None) -> Checkpoint:
    """Return the checkpoint that `weights` names, fetching it if need be; None or "" is the genuine one, pinned.

    - `small`: the checkpoint in this repository.
    - a directory in sentence-transformers layout.
    - `https://...tar`, which holds such a directory, or the Hugging Face cache of one.
    - `owner/name` or `owner/name@revision` on the Hugging Face hub.

    Baked into the image or in the cache, it is taken from there without any network. WEIGHTS_SHA256 refuses any content
    but its own. Raises WeightsError in one sentence when the checkpoint is not to be had, not complete or not that.
    """
    weights = weights or ""
    if weights == "small":
        return _from_directory(SMALL, "small")
    if weights and Path(weights).expanduser().is_dir():
        directory = Path(weights).expanduser()
        if (directory / RECORD).is_file():
            return _check_pin(_from_record(directory, cache.look(directory)))
        return _from_directory(directory, directory.resolve().name)
    return _from_record(*cache.obtain(_wanted(weights)))


def _wanted(weights: str) -> Wanted:
    pin = os.environ.get("WEIGHTS_SHA256") or None
    asked = f"WEIGHTS={weights}" if weights else f"WEIGHTS unset, {GENUINE.name}"
    if TAR.fullmatch(weights):
        stem = re.sub(r"[^\w.-]", "_", weights.rpartition("/")[2].partition(".tar")[0])
        key = f"{stem}@{hashlib.sha256(weights.encode()).hexdigest()[:HASH_DIGITS]}"
        is_genuine = {"tar": weights} in GENUINE.sources
        return Wanted(key, asked, _sources([{"tar": weights}]), GENUINE if is_genuine else None, pin)
    if not weights:
        return Wanted(_key(GENUINE.name, GENUINE.revision), asked, _sources(GENUINE.sources), GENUINE, pin)
    match = REPOSITORY.fullmatch(weights)
    if match is None or weights.startswith((".", "/", "~")):
        raise WeightsError(
            f"WEIGHTS={weights}: no such directory, and not the name of a Hugging Face repository (owner/name) or the "
            "address of a tar (https://...tar) either; name a directory in sentence-transformers layout, 'small', or "
            f"leave WEIGHTS unset for {GENUINE.name}"
        )
    known = {source["hub"]: source["revision"] for source in GENUINE.sources if "hub" in source}
    repo, revision = match["repo"], match["revision"] or known.get(match["repo"])
    is_genuine = known.get(repo) == revision and revision is not None
    sources = _sources([{"hub": repo} | ({"revision": revision} if revision else {})])
    return Wanted(_key(repo, revision or "main"), asked, sources, GENUINE if is_genuine else None, pin)


def _key(repo: str, revision: str) -> str:
    return f"{repo}@{revision}".replace("/", "--")


def _sources(described: list[dict[str, str]]) -> list[Source]:
    """Return the sources in the order to try; a gated one among several only where there is a token for it."""
    return [
        _LazySource(one) for one in described if len(described) == 1 or "gated" not in one or os.environ.get("HF_TOKEN")
    ]


@dataclass(frozen=True, slots=True)
class _LazySource:
    """A source that imports the hub's client, a quarter of a second, when it is first asked."""

    described: dict[str, str]

    @property
    def label(self) -> str:
        return self._source().label

    def fetch(self, work: Path) -> str | None:
        return self._source().fetch(work)

    def _source(self) -> Source:
        if "tar" in self.described:
            from fetching.tar import TarArchive

            return TarArchive(self.described["tar"])
        from fetching.hub import HubRepository

        return HubRepository(self.described["hub"], self.described.get("revision"))


def _from_record(directory: Path, record: Record) -> Checkpoint:
    if not GENUINE.differences(record.files):
        name = f"{GENUINE.name}@{GENUINE.revision}"
    else:
        repo = directory.resolve().name.rpartition("@")[0].replace("--", "/")
        name = f"{repo}@{record.revision}" if record.revision else repo
    return _checkpoint(directory, name, record)


def _from_directory(directory: Path, name: str) -> Checkpoint:
    names = content.check_complete(directory)
    optional = [one for one in GENUINE.files if one not in names and (directory / one).is_file()]
    remembered = (
        cache.folder() / "directories" / f"{hashlib.sha256(str(directory.resolve()).encode()).hexdigest()}.json"
    )
    is_large = sum((directory / one).stat().st_size for one in names) >= HASHED_ANEW_BYTES
    before = content.read_record(remembered) if is_large else None
    known = before.files if before else {}
    record = Record(str(directory), None, content.record_files(directory, [*names, *optional], known))
    if is_large and record.files != known:
        cache.remember(record, remembered)
    return _check_pin(_checkpoint(directory, name, record))


def _checkpoint(directory: Path, name: str, record: Record) -> Checkpoint:
    sha256 = content.content_hash(record.hashes(content.check_complete(directory)))
    canaries = directory / "canaries.json"
    if not GENUINE.differences(record.files):
        canaries = MANIFEST.with_name(f"{MANIFEST.stem}-canaries.json")
    source = f"{record.source}{f', commit {record.revision}' if record.revision else ''}"
    named = f"{name}@sha256:{sha256[:HASH_DIGITS]}"
    return Checkpoint(directory, named, source, sha256, canaries if canaries.is_file() else None)


def _check_pin(checkpoint: Checkpoint) -> Checkpoint:
    if pin := os.environ.get("WEIGHTS_SHA256"):
        cache.check_pin(f"WEIGHTS={checkpoint.directory}", pin, checkpoint.sha256)
    return checkpoint
