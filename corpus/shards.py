"""The folder in which a run keeps what it has done: a manifest of its settings, and a folder for each stored block.

A shard appears under its name by one rename, whole and synced to the disk. A run that is killed leaves at most a folder
with another name, which is ignored.
"""

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from corpus.blocks import NUMBER, Block
from corpus.compute import TextVectors
from corpus.rows import CorpusError, quoted
from fetching.whole import fsync, written_whole

# Blocks whose facts stay in memory, about 30 bytes a text, while rows that repeat their texts are gathered.
BLOCKS_KEPT = 32
MANIFEST = "manifest.json"
PREVIOUS = "previous.txt"  # what the output was that an update takes over
DONE = "done"
SHARD_FILES = ("vectors.npy", "facts.npy", "offsets.npy", "rows.arrow", "shard.json")
# The names of shards, and of everything else that runs make in the folder.
SHARD_NAME = re.compile(r"[0-9]{8}(\.partial-[0-9]+)?")
UNFINISHED = re.compile(rf"({re.escape(MANIFEST)}|{re.escape(PREVIOUS)})\.[0-9]+\.partial")
OWN_NAME = re.compile(
    rf"{re.escape(MANIFEST)}|{UNFINISHED.pattern}|{PREVIOUS}|{DONE}|new"
    r"|(parquet|arrow|feather|npy|jsonl|rows\.parquet|skipped\.jsonl)\.partial"
)


class ShardFolder:
    """The folder of one run. One run at a time works in it, with any number of processes to write shards."""

    def __init__(self, output: Path) -> None:
        """`output` is the file that the run will write; nothing is made yet."""
        self.path = shards_path(output)
        self._lock: int | None = None
        self._facts = lru_cache(maxsize=BLOCKS_KEPT)(self._read_facts)

    def open(self, manifest: Mapping[str, Any]) -> None:
        """Begin a run, or continue it.

        Raises CorpusError if its manifest differs, if it is still going, if the folder is not a run's, or if nothing
        can be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path)
            self._begin(manifest)
        except BlockingIOError:
            remedy = "wait for it, or name another output"
            raise CorpusError(str(self.path), "another run is writing there", remedy) from None
        except OSError as error:
            self.close()
            problem = f"cannot be written: {error.strerror or 'no file can be made there'}"
            remedy = "make room, or name an output in a folder that may be written to"
            raise CorpusError(str(self.path), problem, remedy) from error
        except CorpusError:
            self.close()
            raise

    def _begin(self, manifest: Mapping[str, Any]) -> None:
        """Compare the manifest, or write it in an empty folder."""
        path, place = self.path / MANIFEST, str(self.path)
        if self.path.stat().st_dev != self.path.parent.stat().st_dev:  # a link: no file can be renamed across disks
            raise CorpusError(place, "it is on another disk than the output", "name an output on that disk")
        if not path.exists():
            if strange := [name for name in os.listdir(self.path) if not UNFINISHED.fullmatch(name)]:
                problem = f"it is no folder of a run, as it has {quoted(min(strange))} and no {MANIFEST}"
                raise CorpusError(place, problem, "move it away, or name another output")
            with written_whole(path) as file:
                file.write(json.dumps(manifest, indent=2).encode())
        try:
            before = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise CorpusError(place, "its manifest is damaged", "delete the folder to start anew") from error
        for name in dict(manifest) | before:
            now, then = manifest.get(name), before.get(name)
            if now != then:
                problem = f"it is {now!r}, and the run to go on with had {then!r}"
                raise CorpusError(name, problem, f"run it with that, or delete {self.path} to start anew")

    def check_previous(self, identity: str) -> None:
        """Note which output the run updates. Raises CorpusError if it began with another."""
        path = self.path / PREVIOUS
        if not identity and not path.exists():
            return
        if not path.exists():
            with written_whole(path) as file:
                file.write(identity.encode())
        if path.read_text() != identity:
            problem, remedy = "the output has changed since this update of it began", f"delete {self.path}"
            raise CorpusError("", problem, f"{remedy} to start anew")

    @property
    def is_done(self) -> bool:
        """Whether the run's output is in its place."""
        return (self.path / DONE).exists()

    def set_done(self) -> None:
        """Note that the run's output is in its place."""
        (self.path / DONE).touch()

    def close(self) -> None:
        """Let others work in the folder."""
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def remove(self) -> None:
        """Delete everything that runs made in the folder, when its shards are no longer needed, and the folder itself.

        Files of others stay, and so does the folder then. `open` must have been called.
        """
        assert self._lock is not None
        for name in sorted(os.listdir(self.path), key=lambda name: (name == MANIFEST, name == DONE, name)):  # last
            if SHARD_NAME.fullmatch(name):
                _remove_shard(self.path / name)
            elif OWN_NAME.fullmatch(name) and not (self.path / name).is_dir():
                (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
        self.close()

    def has(self, block: Block) -> bool:
        """Return whether the block is stored. Raises CorpusError if a different block is: the input has changed."""
        shard = self._shard(block.index)
        if not shard.exists():
            return False
        with _whole(shard):
            digest = _shard_json(shard)["digest"]
        if digest != block.digest:
            numbers = block.rows[NUMBER]
            between = f"between {numbers[0]} and {numbers[-1]} (lines or rows)"
            problem = f"the input has changed since the run was begun, {between}"
            raise CorpusError("", problem, f"restore it, or delete {self.path} to start anew")
        return True

    def write(self, block: Block, vectors: TextVectors) -> None:
        """Store a block, whole or not at all. Raises OSError, as on a full disk."""
        shard = self._shard(block.index)
        work = shard.with_name(f"{shard.name}.partial-{os.getpid()}")
        _remove_shard(work)
        work.mkdir()
        try:
            for name in ("vectors", "facts", "offsets"):
                with (work / f"{name}.npy").open("wb") as file:
                    _write_array(file, getattr(vectors, name))
            with (work / "rows.arrow").open("wb") as file, pa.ipc.new_file(file, block.rows.schema) as writer:
                writer.write_table(block.rows)
            facts = {"digest": block.digest, "refused": list(vectors.refused.items())}
            (work / "shard.json").write_text(json.dumps(facts), encoding="utf-8")
            for name in SHARD_FILES:
                fsync(work / name)
            work.rename(shard)
        except BaseException:
            _remove_shard(work)
            raise

    def rows(self, index: int) -> pa.Table:
        """Return the rows of a block, mapped."""
        with _whole(shard := self._shard(index)), pa.memory_map(str(shard / "rows.arrow")) as file:
            return pa.ipc.open_file(file).read_all()

    def id_type(self, count: int) -> pa.DataType:
        """Return the type of the ids of `count` blocks: uint64 if any block needs it."""
        types = {self.rows(index).schema.field("id").type for index in range(count)} - {pa.null()}
        return pa.uint64() if pa.uint64() in types else next(iter(types), pa.null())

    def vectors(self, index: int) -> TextVectors:
        """Return the vectors of a block, mapped. Do not keep them: mapped pages count as the process's memory."""
        with _whole(shard := self._shard(index)):
            return replace(self._facts(index), vectors=np.load(shard / "vectors.npy", mmap_mode="r"))

    def _read_facts(self, index: int) -> TextVectors:
        shard = self._shard(index)
        facts, offsets = np.load(shard / "facts.npy"), np.load(shard / "offsets.npy")
        return TextVectors(np.empty(0), facts, offsets, dict(_shard_json(shard)["refused"]))

    def _shard(self, index: int) -> Path:
        return self.path / f"{index:08d}"


def shards_path(output: Path) -> Path:
    """Return the folder in which a run for this output keeps its shards."""
    return output.with_name(f"{output.name}.parts")


def lock_folder(folder: Path) -> int:
    """Return a descriptor that keeps others out of a folder until it is closed.

    Raises BlockingIOError if another process has it, FileNotFoundError if it has just gone, and OSError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(descriptor), os.stat(folder)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextmanager
def _whole(shard: Path) -> Iterator[None]:
    """Raise CorpusError if a stored block turns out to be damaged."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, pa.ArrowException) as error:
        of_damage = (None, errno.ENOENT, errno.EINVAL)
        if isinstance(error, MemoryError) or getattr(error, "errno", None) not in of_damage:
            raise
        remedy = "delete this folder and run the same again"
        raise CorpusError(str(shard), f"it is damaged: {error}", remedy) from error


def _shard_json(shard: Path) -> dict[str, Any]:
    return dict(json.loads((shard / "shard.json").read_bytes()))


def _remove_shard(shard: Path) -> None:
    """Delete a shard, whole or partial, but no file of others in its folder, and nothing in its place."""
    if shard.is_symlink():
        return
    for name in SHARD_FILES:
        with suppress(OSError):
            (shard / name).unlink()
    with suppress(OSError):
        shard.rmdir()


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write .npy as numpy does, but on a full disk raise the system's error, which numpy hides."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
