"""The folder in which a run keeps what it has done: a manifest of its settings, and a folder for each stored block.

A shard appears under its name by one rename, whole and synced to the disk. A run that is killed leaves at most a folder
with another name, which counts for nothing.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from errno import EINVAL, ENOENT
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from corpus.blocks import NUMBER, Block
from corpus.compute import TextVectors
from corpus.rows import CorpusError

# Blocks whose texts' facts are kept in memory, about 30 bytes a text, while rows that repeat them are gathered.
BLOCKS_KEPT = 32


class ShardFolder:
    """The folder of one run. One run at a time works in it, with any number of processes to write shards."""

    def __init__(self, output: Path) -> None:
        """`output` is the file that the run is to write; nothing is made yet."""
        self.path = shards_path(output)
        self._lock = FileLock(lock_path(output))
        self._facts = lru_cache(maxsize=BLOCKS_KEPT)(self._read_facts)

    def open(self, manifest: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one.

        Raises CorpusError if its manifest was another, if it is still going, or if nothing can be written.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            if not os.path.exists(self._lock.lock_file):  # nobody's: it cannot be made
                raise self._unwritable(error) from error
            raise CorpusError(
                f"{self.path}: another run is writing there; wait for it, or name another output"
            ) from None
        except (OSError, NotImplementedError) as error:  # the latter where a file system has no locks
            raise self._unwritable(error) from error
        try:
            self._begin(manifest)
        except OSError as error:
            self.close()
            raise self._unwritable(error) from error
        except CorpusError:
            self.close()
            raise

    def _begin(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder if it is not there, and compare its manifest."""
        self.path.mkdir(parents=True, exist_ok=True)
        path = self.path / "manifest.json"
        if not path.exists():
            partial = path.with_suffix(".partial")
            with synced(partial) as file:
                file.write(json.dumps(manifest, indent=2).encode())
            partial.rename(path)
        try:
            before = dict(json.loads(path.read_bytes()))
        except ValueError as error:
            raise CorpusError(f"{self.path}: its manifest is damaged; delete the folder to start anew") from error
        for name in dict(manifest) | before:
            if manifest.get(name) != before.get(name):
                raise CorpusError(
                    f"{name}: it is {manifest.get(name)!r}, and the run to go on with had {before.get(name)!r}; run it "
                    f"with that, or delete {self.path} to start anew"
                )

    def _unwritable(self, error: Exception) -> CorpusError:
        reason = getattr(error, "strerror", None) or "no file can be made there"
        return CorpusError(
            f"{self.path}: cannot be written: {reason}; make room, or name an output in a folder that may be written to"
        )

    def close(self) -> None:
        """Let others work in the folder."""
        self._lock.release()

    def remove(self) -> None:
        """Delete the folder, when its shards are no longer needed."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def has(self, block: Block) -> bool:
        """Return whether the block is stored. Raises CorpusError when it was another one: the input has changed."""
        shard = self._shard(block.index)
        if not shard.exists():
            return False
        with _whole(shard):
            digest = _shard_json(shard)["digest"]
        if digest != block.digest:
            numbers = block.rows[NUMBER]
            raise CorpusError(
                f"the input has changed since the run was begun, between {numbers[0]} and {numbers[-1]} (lines or "
                f"rows); restore it, or delete {self.path} to start anew"
            )
        return True

    def write(self, block: Block, vectors: TextVectors) -> None:
        """Store a block, whole or not at all. Raises OSError, as on a full disk."""
        shard = self._shard(block.index)
        work = shard.with_name(f"{shard.name}.partial-{os.getpid()}")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            for name in ("vectors", "facts", "offsets"):
                with synced(work / f"{name}.npy") as file:
                    _write_array(file, getattr(vectors, name))
            with synced(work / "rows.arrow") as file, pa.ipc.new_file(file, block.rows.schema) as writer:
                writer.write_table(block.rows)
            with synced(work / "shard.json") as file:
                file.write(json.dumps({"digest": block.digest, "refused": list(vectors.refused.items())}).encode())
            work.rename(shard)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def rows(self, index: int) -> pa.Table:
        """Return the rows of a block, mapped."""
        with _whole(shard := self._shard(index)), pa.memory_map(str(shard / "rows.arrow")) as file:
            return pa.ipc.open_file(file).read_all()

    def id_type(self, count: int) -> pa.DataType:
        """Return the type of the ids of `count` blocks: uint64 where one of them needs it, though others do not."""
        types = {self.rows(index).schema.field("id").type for index in range(count)} - {pa.null()}
        return pa.uint64() if pa.uint64() in types else next(iter(types), pa.null())

    def vectors(self, index: int) -> TextVectors:
        """Return the vectors of a block, mapped. Mapped pages count as the process's memory: do not keep them."""
        with _whole(shard := self._shard(index)):
            return replace(self._facts(index), vectors=np.load(shard / "vectors.npy", mmap_mode="r"))

    def _read_facts(self, index: int) -> TextVectors:
        shard = self._shard(index)
        facts, offsets = np.load(shard / "facts.npy"), np.load(shard / "offsets.npy")
        return TextVectors(np.empty(0), facts, offsets, dict(_shard_json(shard)["refused"]))

    def _shard(self, index: int) -> Path:
        return self.path / f"{index:08d}"


def shards_path(output: Path) -> Path:
    """Return the folder in which a run for this output keeps what is done."""
    return output.with_name(f"{output.name}.parts")


def lock_path(output: Path) -> Path:
    """Return the file that keeps a second run out of that folder."""
    return output.with_name(f"{shards_path(output).name}.lock")


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing; after the block it is on the disk."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def _whole(shard: Path) -> Iterator[None]:
    """Raise CorpusError where a stored block turns out to be damaged."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, pa.ArrowException) as error:
        about_process = isinstance(error, MemoryError) or getattr(error, "errno", None) not in (None, ENOENT, EINVAL)
        if about_process:
            raise
        raise CorpusError(f"{shard}: it is damaged: {error}; delete this folder and run the same again") from error


def _shard_json(shard: Path) -> dict[str, Any]:
    return dict(json.loads((shard / "shard.json").read_bytes()))


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    """Write .npy as numpy does, but on a full disk raise what the system says, which numpy does not."""
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
    file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
