"""An earlier output of the same corpus: which texts have vectors there, and which of its rows stay.

Its files are read in parts, row groups or record batches. A text's rows (several where it was cut into chunks) belong
to the part in which they begin. What is known of each text is on the disk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from corpus.blocks import BLOCK, FILE, HASH, NUMBER, PROBLEM, TEXT, Source
from corpus.compute import FACTS, VECTORS_AT_ONCE, TextVectors
from corpus.output_rows import vectors_of
from corpus.rows import OUTPUT_COLUMNS, TEXT_HASH, CorpusError, quoted
from corpus.sorted_keys import KEY, DiskArray
from corpus.sorted_keys import Sorted as Sorted
from corpus.sorted_keys import keys as keys
from corpus.sources import reason

PARTS_KEPT = 4
FIRST_BLOCK = -2
"""The block of part 0; that of part p is FIRST_BLOCK - p."""


class Parts(NamedTuple):
    """A file of vectors: its schema, the rows of each part, and a function that reads columns of a part."""

    schema: pa.Schema
    counts: list[int]
    read: Callable[[int, list[str]], pa.Table]


def parquet_parts(file: Any) -> Parts:
    """Return the parts of an open .parquet file."""
    parquet = pq.ParquetFile(file, pre_buffer=True)
    counts = [parquet.metadata.row_group(i).num_rows for i in range(parquet.num_row_groups)]
    return Parts(parquet.schema_arrow, counts, lambda i, columns: parquet.read_row_group(i, columns))


def arrow_parts(file: Any) -> Parts:
    """Return the parts of an open .arrow file."""
    reader = pa.ipc.open_file(file)
    counts = [reader.get_batch(i).num_rows for i in range(reader.num_record_batches)]
    return Parts(reader.schema, counts, lambda i, columns: pa.table(reader.get_batch(i)).select(columns))


def lance_parts(dataset: Any) -> Parts:
    """Return the parts of an open .lance dataset."""
    rows = dataset.count_rows()
    counts = [min(VECTORS_AT_ONCE, rows - at) for at in range(0, rows, VECTORS_AT_ONCE)]

    def read(i: int, columns: list[str]) -> pa.Table:
        return dataset.to_table(columns=columns, offset=i * VECTORS_AT_ONCE, limit=counts[i])

    return Parts(dataset.schema, counts, read)


class Previous:
    """The rows of an earlier output, in files of one schema."""

    def __init__(
        self,
        place: str,
        files: Mapping[str, Parts],
        metadata: Mapping[str, str],
        identity: str,
        folder: Path | None = None,
    ) -> None:
        """Index the texts of `files`, in `folder`. Messages call the output `place`; `identity` changes when it does.

        Raises CorpusError if its vectors are of another model or other options than `metadata` says, or if it does not
        tell which texts they are of.
        """
        self.place, self.names, self.identity = place, list(files), identity
        self.counts = [sum(parts.counts) for parts in files.values()]
        self._files, self._metadata = list(files.values()), metadata
        for parts in self._files:
            self._check(parts.schema)
        self.schema = self._files[0].schema
        self._part_at = [(file, i) for file, parts in enumerate(self._files) for i in range(len(parts.counts))]
        counts = [count for parts in self._files for count in parts.counts]
        self._first_rows = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._starts = DiskArray(np.dtype(np.int64), folder) if "start" in self.schema.names else None
        self._keys = DiskArray(KEY, folder)
        hashes, self._first_texts = DiskArray(KEY, folder), np.zeros_like(self._first_rows)
        for part, first in enumerate(self._first_rows_of_texts()):
            hashes.append(keys(first[TEXT_HASH]))
            self._keys.append(keys(first["id"]))
            self._first_texts[part + 1] = len(self._keys)
        self._hashes, self._ids = Sorted(hashes, folder), Sorted(self._keys, folder)
        self.vectors = lru_cache(PARTS_KEPT)(self._vectors)

    def _check(self, schema: pa.Schema) -> None:
        before = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
        if TEXT_HASH not in schema.names or "model" not in before:
            problem = f"it has no column {TEXT_HASH!r}, or does not say which model made it, so it cannot be updated"
            raise CorpusError(self.place, problem, "embed the corpus into a new output")
        for name in [*self._metadata, *({"chunk", "overlap", "late"} - {*self._metadata})]:
            if (now := self._metadata.get(name)) != (then := before.get(name)):
                problem = f"it is {now!r}, and {self.place} was made with {then!r}"
                raise CorpusError(name, problem, "run it with that, or embed the corpus into a new output")

    def _first_rows_of_texts(self) -> Iterator[pa.Table]:
        """Yield id and hash of the texts of each part, and note in which row each begins."""
        last_file, last_id = -1, None
        for part, (file, i) in enumerate(self._part_at):
            table = self._read(file, i, ["id", TEXT_HASH])
            if self._starts is not None and table.num_rows:
                ids, begins = table["id"].combine_chunks(), np.ones(table.num_rows, bool)
                begins[1:] = ids.slice(1).to_numpy(False) != ids.slice(0, len(ids) - 1).to_numpy(False)
                begins[0] = file != last_file or ids[0].as_py() != last_id
                last_file, last_id = file, ids[-1].as_py()
                self._starts.append(np.flatnonzero(begins) + self._first_rows[part])
                table = table.filter(pa.array(begins))
            yield table

    @property
    def texts(self) -> dict[str, int]:
        """How many texts each file has."""
        counts = np.zeros(len(self.names), np.int64)
        np.add.at(counts, [file for file, _ in self._part_at], np.diff(self._first_texts))
        return dict(zip(self.names, counts.tolist(), strict=True))

    def check_unique(self) -> None:
        """Raise CorpusError for an id that is there twice."""
        if (text := self._ids.repeated) is not None:
            part = int(self._parts_of(np.array(text)))
            again = self._texts(part, []).slice(text - int(self._first_texts[part]), 1)["id"][0].as_py()
            raise CorpusError(self.place, f"the id {quoted(again)} is there twice", "embed it anew")

    def find(self, hashes: Sequence[bytes]) -> list[Source | None]:
        """Return block and text where the vectors of each text are, None for a text without."""
        texts = self._hashes.find(np.array(hashes, KEY))
        parts = self._parts_of(texts)
        numbers = texts - self._first_texts[parts]
        return [
            (FIRST_BLOCK - part, number) if text >= 0 else None
            for text, part, number in zip(texts.tolist(), parts.tolist(), numbers.tolist(), strict=True)
        ]

    def _parts_of(self, texts: np.ndarray) -> np.ndarray:
        """Return the part in which each text begins; of -1 any."""
        return np.searchsorted(self._first_texts[:-1], np.maximum(texts, 0), side="right") - 1

    def files_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the number of the file that each id, given by its key, is in; -1 for a new one."""
        texts = self._ids.find(ids)
        if not self._part_at:
            return texts
        files = np.array([file for file, _ in self._part_at])
        return np.where(texts >= 0, files[self._parts_of(texts)], -1)

    def kept(self, ids: Sorted) -> Iterator[tuple[int, Callable[[], pa.Table]]]:
        """Yield the rows whose ids are not among `ids`: for each part its file, and what gives them as a block's."""
        for part, (file, _) in enumerate(self._part_at):
            if len(self._gone(part, ids)):
                yield file, partial(self._block_rows, part, ids)

    def _gone(self, part: int, ids: Sorted) -> np.ndarray:
        """Return which texts of a part have ids that are not among `ids`."""
        return np.flatnonzero(ids.find(self._keys[self._first_texts[part] : self._first_texts[part + 1]]) < 0)

    def _block_rows(self, part: int, ids: Sorted) -> pa.Table:
        carried, chosen = self._carried(), self._gone(part, ids)
        rows, count = self._texts(part, carried).take(pa.array(chosen)), len(chosen)
        given = {
            NUMBER: pa.nulls(count, pa.int64()),
            BLOCK: pa.array(np.full(count, FIRST_BLOCK - part, np.int32)),
            TEXT: pa.array(chosen.astype(np.int32)),
            PROBLEM: pa.nulls(count, pa.string()),
            FILE: pa.nulls(count, pa.string()),
            HASH: rows[TEXT_HASH],
            "id": rows["id"],
        }
        return pa.table(given | {name: rows[name] for name in carried})

    def rows_of(self, file: int, carried: Sequence[str]) -> Iterator[pa.Table]:
        """Yield id, text_hash and carried columns of a file's texts, part by part."""
        for part, (of, _) in enumerate(self._part_at):
            if of == file:
                yield self._texts(part, carried)

    def _texts(self, part: int, carried: Sequence[str]) -> pa.Table:
        """Return the first row of each text of a part."""
        begin, end, starts = self._span(part)
        return self._rows(begin, end, ["id", TEXT_HASH, *carried]).take(pa.array(starts[:-1]))

    def _span(self, part: int) -> tuple[int, int, np.ndarray]:
        """Return the first row of a part's texts, their end, and where each begins, with the end."""
        first, end = int(self._first_texts[part]), int(self._first_texts[part + 1])
        if self._starts is None:
            return first, end, np.arange(end - first + 1)
        starts = np.append(self._starts[first : end + 1], self._first_rows[-1])[: end - first + 1]
        return int(starts[0]), int(starts[-1]), starts - starts[0]

    def _rows(self, begin: int, end: int, columns: list[str]) -> pa.Table:
        tables = []
        first = max(int(np.searchsorted(self._first_rows, begin, side="right")) - 1, 0)
        for part in range(first, max(int(np.searchsorted(self._first_rows, end)), first + 1)):
            file, i = self._part_at[part]
            at, till = (int(self._first_rows[p]) for p in (part, part + 1))
            table = self._read(file, i, columns)
            tables.append(table.slice(max(begin - at, 0), min(end, till) - max(begin, at)))
        return pa.concat_tables(tables)

    def _read(self, file: int, part: int, columns: list[str]) -> pa.Table:
        try:
            return self._files[file].read(part, columns)
        except MemoryError:
            raise
        except (OSError, pa.ArrowException) as error:
            place = f"{self.place}{self.names[file]}"
            problem, remedy = f"cannot be read: {reason(error)}", "if it is damaged, embed the corpus into a new output"
            raise CorpusError(place, problem, remedy) from error

    def _vectors(self, block: int) -> TextVectors:
        """Return the vectors of a part's texts."""
        names = [name for name in FACTS.names if name in self.schema.names]
        begin, end, offsets = self._span(FIRST_BLOCK - block)
        rows = self._rows(begin, end, ["embedding", *names])
        return TextVectors(vectors_of(rows["embedding"]), rows.select(names), offsets, {})

    def _carried(self) -> list[str]:
        return [name for name in self.schema.names if name not in OUTPUT_COLUMNS]

    def check_columns(self, fields: Sequence[pa.Field]) -> None:
        """Raise CorpusError if its rows cannot stand beside rows with `fields`, id and carried columns."""
        before = {name: self.schema.field(name).type for name in ("id", *self._carried())}
        after = {field.name: field.type for field in fields}
        for name in after | before if after else ():
            if before.get(name) != after.get(name):
                problem = f"its type is {after.get(name, 'none')}, and {before.get(name, 'none')} in {self.place}"
                remedy = "give it as it was, or an input with all rows and --remove"
                raise CorpusError(name, problem, remedy)
