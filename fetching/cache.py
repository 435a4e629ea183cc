"""Fetched checkpoints. Each is fetched once, and is whole and verified before it appears under its name."""

import hashlib
import logging
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from fetching.files import (
    RECORD,
    Manifest,
    Record,
    WeightsError,
    check_canaries,
    check_complete,
    content_hash,
    differences,
    read_record,
    record_files,
)
from fetching.whole import fsync
from settings.masking import masked, masked_address

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
BAKED = ROOT / "weights-baked"
"""A cache that `scripts/fetch_weights.py --bake` fills and the image contains; it is only read here."""
DEFAULT_CACHE = ROOT / "weights-cache"
PIN_DIGITS = 12
# Smaller checkpoints are hashed at every start, which takes a few hundredths of a second.
HASHED_ANEW_BYTES = 64 << 20
# A broken fetch that nobody has resumed for a week is removed.
FORGOTTEN_S = 7 * 24 * 3_600.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checkpoint to find or fetch: its key in the cache, the setting that asked for it, its sources in order.

    A source is `{"hub": "owner/name", "revision": "..."}` (the revision is optional) or `{"tar": "https://..."}`.
    `remedy` says what else to try when all sources fail.
    """

    key: str
    setting: str
    sources: list[dict[str, str]]
    manifest: Manifest | None
    remedy: str = "try WEIGHTS=small"

    def check(self, record: Record, names: list[str]) -> None:
        """Raise WeightsError unless the content is what WEIGHTS_SHA256, or else the manifest, says."""
        sha256 = content_hash(names, record.files)
        if check_pin(self.setting, sha256) or self.manifest is None:
            return
        if problems := differences(self.manifest.files, record.files):
            raise WeightsError(
                f"{self.setting}: what {record.source} gave is not the checkpoint in {self.manifest.path.name}: "
                f"{'; '.join(problems)}; to use it all the same, knowing what it is, set WEIGHTS_SHA256={sha256}"
            )


def check_pin(setting: str, sha256: str) -> bool:
    """Return whether WEIGHTS_SHA256 is set. Raises WeightsError unless `sha256` begins with its digits."""
    pin = os.environ.get("WEIGHTS_SHA256", "").strip()
    if pin and (len(pin) < PIN_DIGITS or not sha256.startswith(pin.lower())):
        raise WeightsError(
            f"{setting}: its content has SHA-256 {sha256} and WEIGHTS_SHA256 is {pin[:80]!r}; set it to the hash of "
            f"the checkpoint that is meant (at least {PIN_DIGITS} digits), or leave it unset"
        )
    return bool(pin)


def folder() -> Path:
    """Return the cache's directory, which WEIGHTS_CACHE names. Raises WeightsError."""
    named = os.environ.get("WEIGHTS_CACHE", "").strip()
    try:
        return Path(named).expanduser() if named else DEFAULT_CACHE
    except RuntimeError:
        raise WeightsError(f"WEIGHTS_CACHE={named}: there is no such user; name a folder by its whole path") from None


def find_or_fetch(wanted: Wanted) -> tuple[Path, Record]:
    """Return a checkpoint's directory and record, from the image or the cache if it is there, otherwise fetched.

    Raises WeightsError.
    """
    cache = folder()
    _remove_forgotten(cache, time.time())
    if cached := _find(BAKED / wanted.key, wanted) or _find(cache / wanted.key, wanted):
        return cached
    lock = FileLock(cache / f"{wanted.key}.lock")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is fetching %s; waiting for it", wanted.key)
            lock.acquire()
    except OSError as error:
        raise WeightsError(
            f"{wanted.setting}: the cache {cache} cannot be written ({error}); set WEIGHTS_CACHE to a folder that "
            "can be"
        ) from error
    try:
        return _find(cache / wanted.key, wanted) or _fetch(cache / wanted.key, wanted)
    finally:
        lock.release()


def _remove_forgotten(cache: Path, now: float) -> None:
    """Remove unfinished files and folders of broken fetches and killed processes that nobody has resumed."""
    for left in [*cache.glob("*.partial"), *cache.glob("*/*.json.*.partial")]:
        with suppress(OSError, Timeout):  # another user's, or another process is resuming it
            if max(path.stat().st_mtime for path in (left, *left.rglob("*"))) > now - FORGOTTEN_S:
                continue
            if left.is_file():
                left.unlink()
                continue
            with FileLock(cache / f"{left.name.removesuffix('.partial')}.lock", timeout=0):
                shutil.rmtree(left)


def _find(directory: Path, wanted: Wanted) -> tuple[Path, Record] | None:
    """Return a checkpoint that was fetched before, None if it is missing or has changed since."""
    if not directory.is_dir():
        return None
    try:
        return directory, check_fetched(directory, wanted)
    except WeightsError as error:
        logger.warning("not used: %s", error)
        return None


def check_fetched(directory: Path, wanted: Wanted | None = None) -> Record:
    """Return the record of a fetched checkpoint after a quick check; files that seem changed are read in full.

    Raises WeightsError if it is incomplete, changed since it was fetched, or not the `wanted` content.
    """
    record = read_record(directory / RECORD)
    if record is None:
        raise WeightsError(f"{directory}: {RECORD} is missing or cannot be read; delete the folder to fetch it again")
    names = check_complete(directory)
    present = [name for name in record.files if (directory / name).is_file()]
    files = record_files(directory, present, record.files)
    problems = differences(record.files, files)
    problems += [f"{name} is not recorded" for name in names if name not in record.files]
    if problems:
        raise WeightsError(
            f"{directory}: changed since it was fetched: {'; '.join(problems)}; delete the folder to fetch it again"
        )
    if wanted is not None:
        wanted.check(record, names)
    if files != record.files:  # copied, with other times
        record = replace(record, files=files)
        _remember(record, directory / RECORD)
    return record


def record_directory(directory: Path, names: list[str]) -> Record:
    """Return the record of a directory that was not fetched. The hashes of a large directory are cached."""
    key = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()
    path = folder() / "directories" / f"{key}.json"
    is_large = sum((directory / name).stat().st_size for name in names) >= HASHED_ANEW_BYTES
    remembered = read_record(path) if is_large else None
    record = Record(str(directory), None, record_files(directory, names, remembered.files if remembered else {}))
    if is_large and record != remembered:
        _remember(record, path)
    return record


def _remember(record: Record, path: Path) -> None:
    """Write a record if possible; without it the files are read again at the next start."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write(path)
    except OSError as error:
        logger.info("%s cannot be written (%s): the hashes are computed again at every start", path, error)


def _fetch(target: Path, wanted: Wanted) -> tuple[Path, Record]:
    """Try the sources in turn. Raises WeightsError saying what each of them answered."""
    # Importing the hub's client takes a quarter of a second, which a warm cache saves.
    from fetching import hub, tar
    from fetching.download import explain

    refusals = []
    work = target.with_name(f"{target.name}.partial")
    for source in wanted.sources:
        label = masked_address(source["tar"]) if "tar" in source else hub.label(source["hub"], source.get("revision"))
        logger.info("fetching %s from %s", wanted.setting, label)
        started = time.perf_counter()
        try:
            work.mkdir(exist_ok=True)
            if "tar" in source:
                revision = tar.fetch(source["tar"], work)
            else:
                revision = hub.fetch(source["hub"], source.get("revision"), work)
            record = _verify(work / "checkpoint", label, revision, wanted)
            _publish(work, target, record)
        except WeightsError as error:
            # Keep nothing from a source with other content.
            shutil.rmtree(work, ignore_errors=True)
            refusals.append(f"from {label} came something else: {error}")
        except Exception as error:  # the hub's errors, its HTTP client's and the file system's have no common base
            refusals.append(f"could not be fetched from {label}: {masked(explain(error))}")
        else:
            logger.info("fetched %s in %.1f s", wanted.setting, time.perf_counter() - started)
            return target, record
        logger.warning("%s", refusals[-1])
    raise WeightsError(f"{wanted.setting}: {'; '.join(refusals)}, or {wanted.remedy}")


def _verify(directory: Path, source: str, revision: str | None, wanted: Wanted) -> Record:
    """Read every byte that was fetched and return the record. Raises WeightsError if it is not the wanted content."""
    names = check_complete(directory)
    now_s = int(time.time())
    fetched = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    for name in fetched:
        os.utime(directory / name, (now_s, now_s))  # an image keeps whole seconds
    record = Record(source, revision, record_files(directory, set(fetched) - {RECORD}, {}))
    wanted.check(record, names)
    check_canaries(directory, record.files)
    return record


def _publish(work: Path, target: Path, record: Record) -> None:
    """Give the checkpoint its name, after everything in it is on the disk."""
    directory = work / "checkpoint"
    record.write(directory / RECORD)
    for path in [*directory.rglob("*"), directory]:
        fsync(path)
    if target.exists():
        shutil.rmtree(target)
    directory.rename(target)
    fsync(target.parent)
    shutil.rmtree(work, ignore_errors=True)
