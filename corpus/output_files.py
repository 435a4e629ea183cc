"""The output and the files beside it: which there are, whether they can be there, and how they are written."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc

from corpus.output_rows import OutputRows, VectorsOf, output_rows, unfit_rows
from corpus.rows import TEXT_HASH, BadRow, CorpusError
from corpus.shards import shards_path
from corpus.writers import JsonLinesWriter, NumpyWriter, TableWriter, Writer
from fetching.whole import put_in_place
from texts.options import Options

OUTPUT_FORMATS = ("parquet", "arrow", "feather", "npy", "jsonl")
UPDATED_FORMATS = ("parquet", "arrow", "feather")
"""Formats that keep the hash of each text, so that they can be updated."""
SKIPPED_LISTED = 1_000_000
"""Rows in the list of skipped rows; further rows are only counted."""


def side_file(output: Path, kind: str) -> Path:
    """Return the path of a file beside the output: vectors.parquet's `skipped.jsonl` is vectors.skipped.jsonl."""
    return output.with_name(f"{output.stem}.{kind}")


def side_files(output: Path, skip: bool) -> list[Path]:
    """Return the files that a run may make beside its output; the list of skipped rows only if it may `skip` rows."""
    names = [*(["rows.parquet"] if output.suffix == ".npy" else []), *(["skipped.jsonl"] if skip else [])]
    return [side_file(output, name) for name in names]


def check_output(output: Path, beside: Sequence[Path] = ()) -> None:
    """Raise CorpusError if the output cannot be there, or it or a file `beside` it exists."""
    try:
        if not output.parent.is_dir():
            raise CorpusError(str(output), f"there is no folder {output.parent}", "make it first")
        _check_names(output)
        for path in (output, *beside):
            if os.path.lexists(path):
                what = "" if path == output else f" with {path} beside it"
                raise CorpusError(str(path), "the file is there already", f"delete it, or name another output{what}")
        if not os.access(output.parent, os.W_OK | os.X_OK):
            raise CorpusError(str(output), f"nothing may be written in {output.parent}", "name another folder")
    except OSError as error:
        raise CorpusError(str(output), f"cannot be written: {error.strerror or error}", "name another") from error


def _check_names(output: Path) -> None:
    """Raise CorpusError if a file beside the output, at least for a time, would have too long a name."""
    beside = [shards_path(output), *side_files(output, skip=True)]
    longest = max(len(os.fsencode(path.name)) for path in beside)
    if longest > (limit := os.pathconf(output.parent, "PC_NAME_MAX")):
        raise CorpusError(
            str(output),
            f"the name is too long by {longest - limit} bytes, as files beside it have up to {longest} and {limit} are "
            "the most there",
            "shorten it",
        )


def skipped_line(row: BadRow) -> bytes:
    """Return a line of the list of rows that have no vector."""
    place = {"file": row.file} if row.file else {}
    line = {**place, "number": row.number, "problem": row.problem}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def nothing_written(output: str, first: BadRow | None) -> CorpusError:
    """Return the error of an output without any vector; `first` is the first row that has none."""
    of = f" of {first.file}" if first and first.file else ""
    why = f"the first, number {first.number}{of}: {first.problem}" if first else ""
    problem = f"not written, as no row of the input has a vector{'' if why else ', or the input has none'}"
    return CorpusError(output, problem, why)


class OutputFiles:
    """An output and the files beside it, in a with block; all appear under their names when `finish` is called.

    Without `finish` nothing stays. Their folder must be the caller's own. Methods raise OSError, as on a full disk.
    """

    def __init__(
        self, output: Path, model: str, options: Options, hashed: bool = False, rows_beside: bool = False
    ) -> None:
        """With `hashed` each row has its text's hash; with `rows_beside`, .npy has a file of all else."""
        self._output, self._format = output, output.suffix.removeprefix(".")
        self._hashed, self._rows_beside = hashed, rows_beside
        self._metadata = {"model": model, **options.described()}
        self._with_ranges = options.chunking is not None
        self._files: dict[Path, BinaryIO] = {}
        self._writers: list[Writer] = []
        self.rows = 0
        """How many rows were written, a text's chunks each."""
        self.prompted = 0
        """How many vectors are of texts that began with one of the model's prompts."""
        self._first_unfit: BadRow | None = None

    def __enter__(self) -> "OutputFiles":
        return self

    def __exit__(self, *exception: object) -> None:
        """Delete what has not been finished."""
        for writer in self._writers:
            with suppress(OSError, ValueError):  # its file is closed, or full
                writer.close()
        for path, file in self._files.items():
            with suppress(OSError):
                file.close()
            self._partial(path).unlink(missing_ok=True)

    def written_bytes(self) -> int:
        """Return the length of all files together."""
        return sum(file.tell() for file in self._files.values())

    def write_block(self, rows: pa.Table, vectors_of: VectorsOf) -> list[BadRow]:
        """Append a block's rows that have a vector, and return those that have none."""
        for part in output_rows(rows, vectors_of, self._with_ranges):
            if not self._hashed:
                part = replace(part, table=part.table.drop_columns([TEXT_HASH]))
            self._writers = self._writers or self._open_writers(part)
            for writer in self._writers:
                writer.write(part)
            self.rows += part.table.num_rows
            self.prompted += pc.sum(part.table["prompted"]).as_py()
        unfit = unfit_rows(rows, vectors_of)
        self._first_unfit = self._first_unfit or next(iter(unfit), None)
        return unfit

    def finish(self) -> None:
        """Give the files their names. Raises CorpusError if there is no vector at all."""
        if not self._writers:
            raise nothing_written(str(self._output), self._first_unfit)
        for writer in self._writers:
            writer.close()
        for file in self._files.values():
            file.close()
        for path in sorted(self._files, key=self._output.__eq__):  # the output last: when it is there, all are
            put_in_place(self._partial(path), path)
        self._files, self._writers = {}, []

    def _partial(self, path: Path) -> Path:
        """Return the name of a file while it is written, which is no longer than any."""
        return path.with_name(f"{path.name.removeprefix(self._output.stem).lstrip('.')}.partial")

    def _open(self, path: Path) -> BinaryIO:
        self._files[path] = self._partial(path).open("wb")
        return self._files[path]

    def _open_writers(self, first: OutputRows) -> list[Writer]:
        file = self._open(self._output)
        if self._format in UPDATED_FORMATS:
            return [TableWriter(file, first, self._metadata, self._format == "parquet")]
        if self._format == "jsonl":
            return [JsonLinesWriter(file)]
        if not self._rows_beside:
            return [NumpyWriter(file, first)]
        rows_path = side_file(self._output, "rows.parquet")
        rows_writer = TableWriter(self._open(rows_path), first, self._metadata, with_vectors=False)
        return [NumpyWriter(file, first), rows_writer]
