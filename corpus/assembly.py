"""Stored blocks, and rows that stay of an earlier output, to a whole product: a file, or the files of a folder."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

import encoding
from corpus.blocks import NUMBER
from corpus.compute import TextVectors
from corpus.destination import SKIPPED, Destination
from corpus.folders import Layout, Tables, has_rows, write_file
from corpus.limits import MB
from corpus.output_files import (
    SKIPPED_LISTED,
    UPDATED_FORMATS,
    OutputFiles,
    nothing_written,
    side_file,
    side_files,
    skipped_line,
)
from corpus.output_rows import unfit_rows
from corpus.previous import Previous
from corpus.publishing import link
from corpus.rows import INNER_COLUMNS, BadRow, CorpusError, quoted
from corpus.shards import ShardFolder
from corpus.sorted_keys import KEY, DiskArray, Sorted, keys
from fetching.whole import written_whole
from texts.options import Options


class Assembly:
    """The rows of an output in their order, and where their vectors are."""

    def __init__(self, shards: ShardFolder, blocks: int, destination: Destination, previous: Previous | None) -> None:
        """Raises CorpusError for ids that are there twice, and for rows that cannot stand beside those that stay."""
        self._shards, self._destination, self._previous = shards, destination, previous
        id_type, folder = shards.id_type(blocks), shards.path
        self._new: Tables = [partial(self._block, index, id_type) for index in range(blocks)]
        self._keys, self._ends = DiskArray(KEY, folder), [0]
        for table in self._new:
            ids = table()["id"]
            self._ends.append(self._ends[-1] + len(ids))
            if destination.update:
                self._keys.append(keys(ids))
        known = Sorted(self._keys, folder)
        if known.repeated is not None:
            raise self._not_unique(known.repeated)
        self._kept: list[tuple[int, Callable[[], pa.Table]]] = []
        if previous and not destination.remove:
            apart = {*INNER_COLUMNS, *destination.partition}
            fields = [field for table in self._new[:1] for field in table().schema if field.name not in apart]
            previous.check_columns(fields)
            self._kept = [*previous.kept(known)]

    @property
    def _tables(self) -> Tables:
        return [*self._new, *(table for _, table in self._kept)]

    def _block(self, index: int, id_type: pa.DataType) -> pa.Table:
        rows = self._shards.rows(index)
        at = rows.schema.get_field_index("id")
        return rows.set_column(at, pa.field("id", id_type), rows["id"].cast(id_type))

    def _not_unique(self, again: int) -> CorpusError:
        """Return the error of an id that is there a second time in row `again` of all blocks."""
        block = int(np.searchsorted(self._ends, again, side="right")) - 1
        row = self._new[block]().slice(again - self._ends[block], 1)
        problem = f"{quoted(row['id'][0].as_py())} is there twice, the second time as row {row[NUMBER][0]}"
        return CorpusError("id", f"{problem}, and an update tells rows by their ids", "make them unique")

    def _vectors(self, block: int) -> TextVectors:
        if block >= 0:
            return self._shards.vectors(block)
        assert self._previous
        return self._previous.vectors(block)

    def write(self, model: str, options: Options) -> dict[str, int]:
        """Write the product, and list rows without a vector beside or in it. Return RunProgress's counts."""
        product = self._destination.product
        product.parent.mkdir(exist_ok=True)
        if self._destination.form == "folder":
            return self._write_folder(model, options)
        rows, hashed = 0, product.suffix.removeprefix(".") in UPDATED_FORMATS
        for left in side_files(product, skip=True):  # by a run that was interrupted here
            left.unlink(missing_ok=True)
        with OutputFiles(product, model, options, hashed, rows_beside=True) as files:
            for table in self._tables:
                rows += (block := table()).num_rows
                files.write_block(block, self._vectors)
            skipped = self._list_skipped(side_file(product, "skipped.jsonl"))
            self._check_meanwhile()
            files.finish()
        return {"rows": rows - skipped, "skipped": skipped, "prompted": files.prompted}

    def _write_folder(self, model: str, options: Options) -> dict[str, int]:
        destination, previous = self._destination, self._previous
        folder, partition = destination.product.parent, destination.partition
        for left in (*folder.rglob("part-*.parquet"), *folder.rglob("*.partial")):  # by a run that was interrupted here
            left.unlink()
        layout = Layout(folder.parent, self._rows_of_file(options), partition, previous.texts if previous else None)
        for table, (begin, end) in zip(self._new, pairwise(self._ends), strict=True):
            layout.add(table, previous.files_of(self._keys[begin:end]) if previous else np.full(end - begin, -1))
        for file, table in self._kept:
            layout.place(table, np.full(table().num_rows, file))
        counts: dict[str, int] = {}
        for file, name in enumerate(layout.names):
            rows = partial(layout.rows, file)
            if previous and file < len(previous.names) and has_rows(previous, file, rows()):
                counts[name] = previous.counts[file]
                if destination.file_system is None:
                    link(destination.base / name, folder / name)
            elif count := write_file(folder / name, rows(), self._vectors, model, options):
                counts[name] = count
        skipped = self._list_skipped(folder / SKIPPED)
        if not counts:
            raise nothing_written(destination.target, next(self._unfit(), None))
        self._check_meanwhile()
        facts = {"model": model, **options.described(), "rows": sum(counts.values()), "files": counts}
        with written_whole(destination.product) as written:
            written.write(json.dumps(facts, indent=1).encode())
        return {"rows": layout.count - skipped, "skipped": skipped}

    def _unfit(self) -> Iterator[BadRow]:
        return (row for table in self._new for row in unfit_rows(table(), self._vectors))

    def _list_skipped(self, path: Path) -> int:
        """List rows without a vector, if there are any, and return how many there are."""
        count = 0
        with path.open("wb") as file:
            for count, row in enumerate(self._unfit(), 1):
                if count <= SKIPPED_LISTED:
                    file.write(skipped_line(row))
        if not count:
            path.unlink()
        return count

    def _rows_of_file(self, options: Options) -> int:
        """Return how many rows make a file of about the size that is asked for."""
        sample = self._tables[0]() if self._tables else pa.table({"id": []})
        width = encoding.WIRE_DTYPES[options.precision].itemsize * options.width
        texts = vectors = 0
        for index in range(len(self._new)) if options.chunking else ():
            offsets = self._shards.vectors(index).offsets
            texts, vectors = texts + len(offsets) - 1, vectors + int(offsets[-1])
        of_text = vectors / texts if texts else 1
        row = of_text * (width + sample.nbytes / max(sample.num_rows, 1))
        return max(1, int(self._destination.file_mb * MB / row))

    def _check_meanwhile(self) -> None:
        """Raise CorpusError if the output changed since the run began, or another was made."""
        self._destination.check_new()
        before = self._previous.identity if self._previous else ""
        if self._destination.identity() != before:
            raise CorpusError(self._destination.target, "it has changed since the update began", "run it anew")
