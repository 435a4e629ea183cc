"""The folder in which a run keeps what it has done: a manifest of its settings, and a folder for each stored window.

A shard appears under its name by one rename, whole and synced to the disk. A run that is killed leaves at most a folder
with another name, which counts for nothing.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout

from corpus.blocks import Window
from corpus.rows import BadRow, CorpusError

MANIFEST = "manifest.json"
NUMBER = "#number"  # of a row: not a name that a carried column has
# Windows whose texts' places are kept in memory, about 30 bytes a text, while rows that repeat them are gathered.
PLACES_KEPT = 32


@dataclass(frozen=True, slots=True)
class Shard:
    """A computed window. Vector i is of text owners[i] of it, and of characters ranges[i] of that text."""

    window: Window
    vectors: np.ndarray
    """[vectors, width], as the output has them"""
    owners: np.ndarray
    """int64 [vectors], ascending"""
    token_counts: np.ndarray
    truncated: np.ndarray
    ranges: np.ndarray
    """int64 [vectors, 2]"""
    refused: dict[int, str]
    """Texts without a vector, and why."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Places:
    """What is said of a shard's vectors; those of text t are offsets[t] to offsets[t + 1]."""

    offsets: np.ndarray
    token_counts: np.ndarray
    truncated: np.ndarray
    ranges: np.ndarray
    refused: dict[int, str]


@dataclass(frozen=True, slots=True)
class StoredRows:
    """The rows of a shard on the disk: a table of number, id and carried columns, each row's source, the unfit ones."""

    table: pa.Table
    sources: np.ndarray
    bad: list[BadRow]


class Parts:
    """The folder of one run. One process at a time works in it, with any number of its own to write shards."""

    def __init__(self, folder: Path, carried_fields: Sequence[pa.Field] = ()) -> None:
        self.folder, self._carried_fields = folder, list(carried_fields)
        self._lock = FileLock(folder.with_name(f"{folder.name}.lock"))
        self.places = lru_cache(maxsize=PLACES_KEPT)(self._places)

    def open(self, settings: Mapping[str, Any]) -> None:
        """Begin a run, or go on with one. Raises CorpusError if its settings were others or if it is still going."""
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise CorpusError(
                f"{self.folder}: another run is writing there; wait for it, or name another output"
            ) from None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if not path.exists():
            _write_atomically(path, json.dumps(settings, indent=2))
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        for name in dict(settings) | before:
            if settings.get(name) != before.get(name):
                raise CorpusError(
                    f"{name}: it is {settings.get(name)!r}, and the run to go on with had {before.get(name)!r}; run it "
                    f"with that, or delete {self.folder} to start anew"
                )

    def close(self) -> None:
        """Let others work in the folder."""
        self.places.cache_clear()
        self._lock.release()

    def remove(self) -> None:
        """Delete the folder, when its shards are no longer needed."""
        self.places.cache_clear()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)

    def has(self, window: Window) -> bool:
        """Say whether the window is stored. Raises CorpusError when it was another one: the input has changed."""
        shard = self._shard(window.index)
        if not shard.exists():
            return False
        if json.loads((shard / "shard.json").read_text(encoding="utf-8"))["digest"] != window.digest:
            numbers = window.numbers or [row.number for row in window.bad]
            raise CorpusError(
                f"the input has changed since the run was begun, between {numbers[0]} and {numbers[-1]} (lines or "
                f"rows); restore it, or delete {self.folder} to start anew"
            )
        return True

    def write(self, shard: Shard) -> None:
        """Store a window, whole or not at all. Raises OSError, as on a full disk."""
        window = shard.window
        work = self.folder / f"{self._shard(window.index).name}.partial-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        try:
            offsets = np.searchsorted(shard.owners, np.arange(len(window.texts) + 1)).astype(np.int64)
            arrays = {"vectors": shard.vectors, "offsets": offsets, "token_counts": shard.token_counts}
            arrays |= {"truncated": shard.truncated, "ranges": shard.ranges, "sources": window.sources}
            for name, array in arrays.items():
                _save(work / f"{name}.npy", array)
            with (work / "rows.arrow").open("wb") as file:
                table = self._rows(window)
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
                file.flush()
                os.fsync(file.fileno())
            bad = [(row.number, row.problem) for row in window.bad]
            facts = {"digest": window.digest, "bad": bad, "refused": list(shard.refused.items())}
            _write_atomically(work / "shard.json", json.dumps(facts))
            work.rename(self._shard(window.index))
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise

    def rows(self, index: int) -> StoredRows:
        """Read the rows of a window."""
        shard = self._shard(index)
        with pa.memory_map(str(shard / "rows.arrow")) as file:
            table = pa.ipc.open_file(file).read_all()
        bad = [BadRow(*row) for row in json.loads((shard / "shard.json").read_text(encoding="utf-8"))["bad"]]
        return StoredRows(table, np.load(shard / "sources.npy"), bad)

    def vectors(self, index: int, positions: np.ndarray) -> np.ndarray:
        """Read some vectors of a window. The mapping ends with this, as its pages would count as this process's."""
        mapped: np.ndarray = np.load(self._shard(index) / "vectors.npy", mmap_mode="r")
        return np.asarray(mapped[positions])

    def _places(self, index: int) -> Places:
        shard = self._shard(index)
        arrays = {name: np.load(shard / f"{name}.npy") for name in ("offsets", "token_counts", "truncated", "ranges")}
        refused = dict(json.loads((shard / "shard.json").read_text(encoding="utf-8"))["refused"])
        return Places(**arrays, refused=refused)

    def _rows(self, window: Window) -> pa.Table:
        columns = {NUMBER: pa.array(window.numbers, pa.int64()), "id": pa.array(window.ids)}
        carried = list(zip(*window.carried, strict=True)) or [()] * len(self._carried_fields)
        fields = [pa.field(NUMBER, pa.int64()), pa.field("id", columns["id"].type), *self._carried_fields]
        arrays = [*columns.values(), *(pa.array(v, f.type) for v, f in zip(carried, self._carried_fields, strict=True))]
        return pa.table(arrays, schema=pa.schema(fields))

    def _shard(self, index: int) -> Path:
        return self.folder / f"{index:08d}"


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def _save(path: Path, array: np.ndarray) -> None:
    """Write .npy as numpy does, but for its own way of saying that the disk is full, which does not."""
    array = np.ascontiguousarray(array)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(array.reshape(-1).view(np.uint8).data)
        file.flush()
        os.fsync(file.fileno())
