"""An output of many files: which row goes into which file, and the files, of which an update writes only some.

A row stays in the file that its id is in. A file whose rows are all the same is not written again.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from corpus.blocks import BLOCK_COLUMNS, HASH, PROBLEM
from corpus.listing import NO_VALUE
from corpus.output_files import OutputFiles
from corpus.output_rows import VectorsOf
from corpus.previous import Previous
from corpus.rows import TEXT_HASH
from corpus.sorted_keys import DiskArray
from corpus.writers import json_as_strings
from texts.options import Options

# How much larger than asked for a file may grow by updates.
GROWTH = 2


Tables = Sequence[Callable[[], pa.Table]]
"""The rows of blocks, one after another, read when called."""


class Layout:
    """The files of an output, and which file each row goes to. That is on the disk, in `folder`."""

    def __init__(
        self, folder: Path, rows_of_file: int, partition: Sequence[str], before: Mapping[str, int] | None = None
    ) -> None:
        """`before` are the files that are there, with their texts. A new file gets at most `rows_of_file` rows."""
        self.names: list[str] = []
        self._partition, self._rows_of_file = partition, rows_of_file
        self._room: list[int] = []
        self._current: dict[str, int] = {}
        self._next: defaultdict[str, int] = defaultdict(int)
        self._files = DiskArray(np.dtype(np.int32), folder)
        self._tables: defaultdict[int, list[tuple[Callable[[], pa.Table], slice]]] = defaultdict(list)
        for name, count in (before or {}).items():
            self._add_file(name, GROWTH * rows_of_file - count)

    @property
    def count(self) -> int:
        """How many rows there are."""
        return len(self._files)

    def add(self, table: Callable[[], pa.Table], before: np.ndarray) -> None:
        """Add the rows of a block; `before` are the numbers of the files that they are in, -1 for new rows."""
        files: list[int] = []
        for (folder, file), run in groupby(zip(self._folders(table()), before.tolist(), strict=True)):
            count = sum(1 for _ in run)
            if file >= 0 and os.path.dirname(self.names[file]) == folder:
                self._current[folder] = file
                files += [file] * count
            else:
                files += self._files_of_new(folder, count)
        self.place(table, np.array(files, np.int32))

    def place(self, table: Callable[[], pa.Table], files: np.ndarray) -> None:
        """Add the rows of a block, whose files are known."""
        part = slice(len(self._files), len(self._files) + len(files))
        self._files.append(files)
        for file in np.unique(files).tolist():
            self._tables[file].append((table, part))

    def rows(self, file: int) -> Iterator[pa.Table]:
        """Yield the rows of a file, without the columns that its folder names."""
        for table, part in self._tables[file]:
            rows = table().filter(pa.array(self._files[part] == file))
            yield rows.drop_columns([name for name in self._partition if name in rows.schema.names])

    def _files_of_new(self, folder: str, count: int) -> Iterator[int]:
        for _ in range(count):
            file = self._current.get(folder, -1)
            if file < 0 or self._room[file] <= 0:
                name = os.path.join(folder, f"part-{self._next[folder]:05d}.parquet")
                file = self._add_file(name, self._rows_of_file)
            self._room[file] -= 1
            yield file

    def _add_file(self, name: str, room: int) -> int:
        folder, number = os.path.dirname(name), Path(name).stem.rpartition("-")[2]
        if number.isdigit():  # not so where a cluster made the file
            self._next[folder] = max(self._next[folder], int(number) + 1)
        self.names.append(name)
        self._room.append(room)
        self._current[folder] = len(self.names) - 1
        return len(self.names) - 1

    def _folders(self, rows: pa.Table) -> Iterable[str]:
        return folders_of(rows, self._partition)


def folders_of(rows: pa.Table, partition: Sequence[str]) -> Iterable[str]:
    """Return the folder of each row, as Hive names them: `column=value`, one in the other."""
    if not partition:
        return [""] * rows.num_rows
    chosen = json_as_strings(rows.select(list(partition)))
    columns = [chosen[name].cast(pa.string()).to_pylist() for name in partition]
    return ("/".join(map(_folder, partition, values)) for values in zip(*columns, strict=True))


def _folder(name: str, value: str | None) -> str:
    return f"{quote(name, safe='')}={NO_VALUE if value is None else quote(value, safe=' ')}"


def write_file(path: Path, rows: Iterable[pa.Table], vectors_of: VectorsOf, model: str, options: Options) -> int:
    """Write rows of blocks as .parquet and return how many the file has; without any there is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with OutputFiles(path, model, options, hashed=True) as files:
        for table in rows:
            files.write_block(table, vectors_of)
        if files.rows:
            files.finish()
    return files.rows


def has_rows(previous: Previous, file: int, rows: Iterable[pa.Table]) -> bool:
    """Return whether a file of the earlier output has just these rows of blocks: ids, texts and carried columns."""
    carried: list[str] | None = None
    before: Iterator[pa.Table] = iter(())
    left = pa.table({})
    for table in rows:
        table = json_as_strings(table.filter(table[PROBLEM].is_null()))
        now = table.drop_columns(list(BLOCK_COLUMNS)).add_column(1, TEXT_HASH, table[HASH])
        if carried is None:
            carried = now.column_names[2:]
            if not {*carried} <= {*previous.schema.names}:
                return False
            before = previous.rows_of(file, carried)
        while now.num_rows:
            left = left if left.num_rows else next(before, pa.table({}))
            count = min(now.num_rows, left.num_rows)
            if not count or not now.slice(0, count).equals(left.slice(0, count)):
                return False
            now, left = now.slice(count), left.slice(count)
    return carried is not None and not left.num_rows and next(before, None) is None
