"""The folder in which a run keeps what it has done: a manifest of its settings, and a file for each stored block.

A shard appears under its name by one rename, whole and synced to the disk: the block's rows, the offsets of its texts'
vectors, and the vectors with their facts, three streams of Arrow's one after another. A run that is killed leaves at
most a file with another name, which is ignored.
"""

import errno
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpus.blocks import NUMBER, Block
from corpus.compute import TextVectors
from corpus.output_rows import vector_array, vectors_of
from corpus.rows import CorpusError, quoted
from fetching.whole import written_whole

MANIFEST = "manifest.json"
PREVIOUS = "previous.txt"  # what the output was that an update takes over
DONE = "done"
# The names of what runs make in the folder.
UNFINISHED = re.compile(rf"({re.escape(MANIFEST)}|{re.escape(PREVIOUS)}|[0-9]{{8}})\.[0-9]+\.partial")
OWN_NAME = re.compile(rf"[0-9]{{8}}|{re.escape(MANIFEST)}|{UNFINISHED.pattern}|{re.escape(PREVIOUS)}|{DONE}|new")


class ShardFolder:
    """The folder of one run. One run at a time works in it, with any number of processes to write shards."""

    def __init__(self, output: Path) -> None:
        """`output` is the file that the run will write; nothing is made yet."""
        self.path = shards_path(output)
        self._lock: int | None = None

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
        """Compare the manifest, or write it where no run has stored anything yet."""
        path, place = self.path / MANIFEST, str(self.path)
        if self.path.stat().st_dev != self.path.parent.stat().st_dev:  # a link: no file can be renamed across disks
            raise CorpusError(place, "it is on another disk than the output", "name an output on that disk")
        names = {name for name in os.listdir(self.path) if not UNFINISHED.fullmatch(name)}
        if MANIFEST not in names:
            if names:
                problem = f"it is no folder of a run, as it has {quoted(min(names))} and no {MANIFEST}"
                raise CorpusError(place, problem, "move it away, or name another output")
            self._write(manifest)
        try:
            before = dict(json.loads(path.read_bytes()))
        except (ValueError, TypeError) as error:
            raise CorpusError(place, "its manifest is damaged", "delete the folder to start anew") from error
        if names <= {MANIFEST, PREVIOUS} and before.keys() == manifest.keys():  # no block was stored
            (self.path / PREVIOUS).unlink(missing_ok=True)
            self._write(manifest)
            return
        for name in dict(manifest) | before:
            now, then = manifest.get(name), before.get(name)
            if now != then:
                problem = f"it is {now!r}, and the run to go on with had {then!r}"
                raise CorpusError(name, problem, f"run it with that, or delete {self.path} to start anew")

    def _write(self, manifest: Mapping[str, Any]) -> None:
        with written_whole(self.path / MANIFEST) as file:
            file.write(json.dumps(manifest, indent=2).encode())

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
        return os.path.exists(self.path / DONE)

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
            if OWN_NAME.fullmatch(name) and not (self.path / name).is_dir():
                (self.path / name).unlink(missing_ok=True)
        with suppress(OSError):
            self.path.rmdir()
        self.close()

    def has(self, block: Block) -> bool:
        """Return whether the block is stored. Raises CorpusError if a different block is: the input has changed."""
        if not self._shard(block.index).exists():
            return False
        if self._tables(block.index)[2].schema.metadata[b"digest"].decode() != block.digest:
            numbers = block.rows[NUMBER]
            between = f"between {numbers[0]} and {numbers[-1]} (lines or rows)"
            problem = f"the input has changed since the run was begun, {between}"
            raise CorpusError("", problem, f"restore it, or delete {self.path} to start anew")
        return True

    def write(self, block: Block, vectors: TextVectors) -> None:
        """Store a block, whole or not at all. Raises OSError, as on a full disk."""
        facts = {"digest": block.digest, "refused": json.dumps([*vectors.refused.items()])}
        of_vectors = vectors.facts.append_column("embedding", vector_array(vectors.vectors))
        tables = block.rows, pa.table({"offset": vectors.offsets}), of_vectors.replace_schema_metadata(facts)
        with written_whole(self._shard(block.index)) as file:
            for table in tables:
                with pa.ipc.new_stream(file, table.schema) as writer:
                    writer.write_table(table.combine_chunks())

    def _tables(self, index: int) -> list[pa.Table]:
        """Return the tables of a block, mapped."""
        with _whole(shard := self._shard(index)), pa.memory_map(str(shard)) as file:
            return [pa.ipc.open_stream(file).read_all() for _ in range(3)]

    def rows(self, index: int) -> pa.Table:
        """Return the rows of a block, mapped."""
        return self._tables(index)[0]

    def id_type(self, count: int) -> pa.DataType:
        """Return the type of the ids of `count` blocks: uint64 if any block needs it."""
        types = {self.rows(index).schema.field("id").type for index in range(count)} - {pa.null()}
        return pa.uint64() if pa.uint64() in types else next(iter(types), pa.null())

    def vectors(self, index: int) -> TextVectors:
        """Return the vectors of a block, mapped. Do not keep them: mapped pages count as the process's memory."""
        _, offsets, table = self._tables(index)
        refused = dict(json.loads(table.schema.metadata[b"refused"]))
        facts = table.drop_columns(["embedding"]).replace_schema_metadata()
        return TextVectors(vectors_of(table["embedding"]), facts, offsets["offset"].to_numpy(), refused)

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
        remedy = f"delete it, or all of {shard.parent}, and run the same again"
        raise CorpusError(str(shard), f"it is damaged: {error}", remedy) from error
