"""Checkpoints that were fetched: each is whole and verified before it appears under its name, and fetched once."""

import logging
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from fetching import files as content
from fetching.files import RECORD, Manifest, Record, WeightsError

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
BAKED = ROOT / "weights-baked"
"""A cache that `scripts/fetch_weights.py --bake` fills and the image holds; it is only read here."""
DEFAULT_CACHE = ROOT / "weights-cache"
PIN_DIGITS = 12


class Source(Protocol):
    """Where a checkpoint can be fetched from."""

    @property
    def label(self) -> str:
        """Where it is, in words."""
        ...

    def fetch(self, work: Path) -> str | None:
        """Put the files into `work/checkpoint` and return their revision; resume what `work` holds of them.

        Raises download.Unavailable.
        """
        ...


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checkpoint that is to be had: its key in the cache, what must be in it, and its sources in the order to try."""

    key: str
    asked: str
    sources: list[Source]
    manifest: Manifest | None = None
    pin: str | None = None

    def check(self, record: Record, names: list[str]) -> None:
        """Raise WeightsError unless the content is what the pin, or else the manifest, says."""
        sha256 = content.content_hash(record.hashes(names))
        if self.pin is not None:
            check_pin(self.asked, self.pin, sha256)
        elif self.manifest is not None and (problems := self.manifest.differences(record.files)):
            raise WeightsError(
                f"{self.asked}: what {record.source} gave is not the checkpoint in {self.manifest.path.name}: "
                f"{'; '.join(problems)}; to use it all the same, knowing what it is, set WEIGHTS_SHA256={sha256}"
            )


def check_pin(asked: str, pin: str, sha256: str) -> None:
    """Raise WeightsError unless `sha256` begins with the digits that WEIGHTS_SHA256 gives."""
    if len(pin) < PIN_DIGITS or not sha256.startswith(pin.lower()):
        raise WeightsError(
            f"{asked}: its content has SHA-256 {sha256} and WEIGHTS_SHA256 is {pin}; set it to the hash of the "
            f"checkpoint that is meant (at least {PIN_DIGITS} digits), or leave it unset"
        )


def folder() -> Path:
    """Return the cache's directory, which WEIGHTS_CACHE names."""
    return Path(os.environ.get("WEIGHTS_CACHE") or DEFAULT_CACHE).expanduser()


def obtain(wanted: Wanted) -> tuple[Path, Record]:
    """Return the directory of a checkpoint and its record, from the cache without any network, else fetched into it.

    Raises WeightsError.
    """
    for place in (BAKED, folder()):
        if found := _find(place / wanted.key, wanted):
            return found
    cache = folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / f"{wanted.key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("another process is fetching %s; waiting for it", wanted.key)
            lock.acquire()
    except OSError as error:
        raise WeightsError(
            f"{wanted.asked}: the cache {cache} cannot be written ({error}); set WEIGHTS_CACHE to a folder that can be"
        ) from error
    try:
        return _find(cache / wanted.key, wanted) or _fetch(cache / wanted.key, wanted)
    finally:
        lock.release()


def _find(directory: Path, wanted: Wanted) -> tuple[Path, Record] | None:
    """Return a checkpoint that was fetched before, None if there is none or it is not what it was."""
    if not directory.is_dir():
        return None
    try:
        return directory, look(directory, wanted)
    except WeightsError as error:
        logger.warning("not used: %s", error)
        return None


def look(directory: Path, wanted: Wanted | None = None) -> Record:
    """Return the record of a fetched checkpoint after a quick check; files that seem touched are read in full.

    Raises WeightsError when it is not complete, not as it was fetched, or not what is wanted.
    """
    record = content.read_record(directory / RECORD)
    if record is None:
        raise WeightsError(f"{directory}: {RECORD} is missing or cannot be read; delete the folder to fetch it again")
    names = content.check_complete(directory)
    missing = [name for name in {*record.files, *names} if not (directory / name).is_file() or name not in record.files]
    if missing:
        raise WeightsError(
            f"{directory}: {', '.join(sorted(missing))} missing or not recorded; delete the folder to fetch it again"
        )
    files = content.record_files(directory, record.files, record.files)
    if problems := content.changed(record.files, files):
        raise WeightsError(
            f"{directory}: changed since it was fetched: {'; '.join(problems)}; delete the folder to fetch it again"
        )
    if wanted is not None:
        wanted.check(record, names)
    if files != record.files:  # copied, with other times
        record = Record(record.source, record.revision, files)
        remember(record, directory / RECORD)
    return record


def remember(record: Record, path: Path) -> None:
    """Write a record where that can be done; without it the files are read again the next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write(path)
    except OSError as error:
        logger.info("%s cannot be written (%s): the hashes are computed again at every start", path, error)


def _fetch(target: Path, wanted: Wanted) -> tuple[Path, Record]:
    """Try the sources in turn. Raises WeightsError saying what each of them answered."""
    from fetching.download import Unavailable  # the hub's client: a quarter of a second that a warm cache need not pay

    refusals = []
    work = target.with_name(f"{target.name}.partial")
    for source in wanted.sources:
        logger.info("fetching %s from %s", wanted.asked, source.label)
        started = time.perf_counter()
        try:
            work.mkdir(exist_ok=True)
            revision = source.fetch(work)
            record = _verify(work, Record(source.label, revision), wanted)
            _publish(work, target, record)
        except Unavailable as error:
            refusals.append(f"could not be fetched from {source.label}: {error.why}; {error.remedy}")
        except WeightsError as error:
            # Nothing of a source that gave something else is kept.
            shutil.rmtree(work, ignore_errors=True)
            refusals.append(f"from {source.label} came something else: {error}")
        except OSError as error:
            refusals.append(
                f"could not be fetched from {source.label}: it cannot be written to the disk ({error}); free some "
                "space, or set WEIGHTS_CACHE to a folder that can be written"
            )
        else:
            logger.info("fetched %s in %.1f s", wanted.asked, time.perf_counter() - started)
            return target, record
        logger.warning("%s", refusals[-1])
    raise WeightsError(f"{wanted.asked}: {'; '.join(refusals)}, or try WEIGHTS=small")


def _verify(work: Path, record: Record, wanted: Wanted) -> Record:
    """Return the record of what was fetched, every byte of it read. Raises WeightsError when it is not as wanted."""
    directory = work / "checkpoint"
    names = content.check_complete(directory)
    whole_s = int(time.time())
    every = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    for name in every:
        os.utime(directory / name, (whole_s, whole_s))  # an image keeps whole seconds
    record = Record(record.source, record.revision, content.record_files(directory, set(every) - {RECORD}, {}))
    wanted.check(record, names)
    return record


def _publish(work: Path, target: Path, record: Record) -> None:
    """Rename the checkpoint to its name, after everything in it is on the disk."""
    directory = work / "checkpoint"
    record.write(directory / RECORD)
    for path in [*directory.rglob("*"), directory]:
        content.fsync(path)
    if target.exists():
        shutil.rmtree(target)
    directory.rename(target)
    content.fsync(target.parent)
    shutil.rmtree(work, ignore_errors=True)
