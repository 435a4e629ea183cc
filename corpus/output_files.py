"""The output and the files beside it: written in a folder of the run, and never put in another file's place."""

import errno
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
from corpus.writers import ArrowWriter, JsonLinesWriter, NumpyWriter, ParquetWriter, Writer
from fetching.whole import fsync
from texts.options import Options

OUTPUT_FORMATS = ("parquet", "arrow", "feather", "npy", "jsonl")
UPDATED_FORMATS = ("parquet", "arrow", "feather")
"""Formats that keep the hash of each text, so that they can be updated."""
SKIPPED_LISTED = 1_000_000
"""Rows in the list of skipped rows; further rows are only counted."""
# Errors of a file system without second names for files.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)


def side_file(output: Path, kind: str) -> Path:
    """Return the path of a file beside the output: vectors.parquet's `skipped.jsonl` is vectors.skipped.jsonl."""
    return output.with_name(f"{output.stem}.{kind}")


def side_files(output: Path, skip: bool) -> list[Path]:
    """Return the files that a run may make beside its output; the list of skipped rows only if it may `skip` rows."""
    names = [*(["rows.parquet"] if output.suffix == ".npy" else []), *(["skipped.jsonl"] if skip else [])]
    return [side_file(output, name) for name in names]


def partial_path(work: Path, output: Path, path: Path) -> Path:
    """Return the name of the output, or of a file beside it, while it is written in the folder `work`."""
    return work / f"{path.name.removeprefix(output.stem).lstrip('.')}.partial"


def check_output(output: Path, work: Path | None = None, beside: Sequence[Path] = ()) -> str:
    """Return the output's format. Raises CorpusError if it cannot be there, or it or a file `beside` it exists.

    What was published from `work` does not count: a run that was killed did that.
    """
    output_format = output.suffix.removeprefix(".")
    if output_format not in OUTPUT_FORMATS:
        remedy = "name a .parquet, .arrow, .npy, .jsonl or .lance output, or a folder: end it with /"
        raise CorpusError(str(output), f"the output's format is {output_format!r}", remedy)
    try:
        if not output.parent.is_dir():
            raise CorpusError(str(output), f"there is no folder {output.parent}", "make it first")
        _check_names(output)
        for path in (output, *beside):
            if os.path.lexists(path) and not (work and is_published(partial_path(work, output, path), path)):
                what = "" if path == output else f" with {path} beside it"
                raise CorpusError(str(path), "the file is there already", f"delete it, or name another output{what}")
        if not os.access(output.parent, os.W_OK | os.X_OK):
            raise CorpusError(str(output), f"nothing may be written in {output.parent}", "name another folder")
    except OSError as error:
        raise CorpusError(str(output), f"cannot be written: {error.strerror or error}", "name another") from error
    return output_format


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


def publish(partial: Path, path: Path) -> None:
    """Give a whole file its name, beside the name that it has. Raises OSError, and CorpusError for a taken name."""
    try:
        try:
            os.link(partial, path)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            _rename(partial, path)
    except FileExistsError:
        remedy = "move it away and run the same again: what is done is kept"
        raise CorpusError(str(path), "a file of this name has been made meanwhile", remedy) from None


def _rename(partial: Path, path: Path) -> None:
    """Take the name with an empty file, so that nobody else can, and put the whole file in its place."""
    path.open("xb").close()
    try:
        os.replace(partial, path)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def is_published(partial: Path, path: Path) -> bool:
    """Return whether `path` is a name of the file `partial`."""
    with suppress(OSError):
        return os.path.samestat(os.lstat(partial), os.lstat(path))
    return False


def take_back(partial: Path, path: Path) -> None:
    """Remove a published file's name."""
    if is_published(partial, path):
        path.unlink()


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

    Without `finish` nothing stays. The files are written in the folder `work`, which must be the caller's own. If that
    is not the output's folder they also stay there, which tells whose the output is. Methods raise OSError, as on a
    full disk.
    """

    def __init__(
        self,
        output: Path,
        model: str,
        options: Options,
        work: Path,
        beside: Sequence[Path] = (),
        hashed: bool = False,
    ) -> None:
        """`beside` are those of `side_files` that may be made; with `hashed` each row has its text's hash.

        Raises CorpusError if a file cannot be there.
        """
        self._format = check_output(output, work, beside)
        self._hashed = hashed
        self._output, self._work, self._beside = output, work, beside
        for path in beside:
            take_back(self._partial(path), path)
        self._metadata = {"model": model, **options.described()}
        self._with_ranges = options.chunking is not None
        self._files: dict[Path, BinaryIO] = {}
        self._writers: list[Writer] = []
        self.skipped = 0
        """How many rows were skipped."""
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
            self.prompted += pc.sum(part.table["prompted"]).as_py()
        unfit = unfit_rows(rows, vectors_of)
        self._first_unfit = self._first_unfit or next(iter(unfit), None)
        return unfit

    def skip(self, row: BadRow) -> None:
        """List a row that has no vector in `side_file(output, "skipped.jsonl")`."""
        self.skipped += 1
        if self.skipped <= SKIPPED_LISTED:
            path = side_file(self._output, "skipped.jsonl")
            (self._files.get(path) or self._open(path)).write(skipped_line(row))

    def finish(self) -> None:
        """Give the files their names. Raises CorpusError if there is no vector at all."""
        if not self._writers:
            raise nothing_written(str(self._output), self._first_unfit)
        for writer in self._writers:
            writer.close()
        for path, file in self._files.items():
            file.close()
            fsync(self._partial(path))
        paths = sorted(self._files, key=self._output.__eq__)  # the output last: when it is there, all are
        try:
            for path in paths:
                publish(self._partial(path), path)
        except (OSError, CorpusError):
            for path in paths:
                take_back(self._partial(path), path)
            raise
        if self._work == self._output.parent:
            for path in paths:
                self._partial(path).unlink(missing_ok=True)
        self._files, self._writers = {}, []

    def _partial(self, path: Path) -> Path:
        return partial_path(self._work, self._output, path)

    def _open(self, path: Path) -> BinaryIO:
        self._partial(path).unlink(missing_ok=True)  # not written over: it may have another name, too
        self._files[path] = self._partial(path).open("xb")
        return self._files[path]

    def _open_writers(self, first: OutputRows) -> list[Writer]:
        file = self._open(self._output)
        if self._format == "parquet":
            return [ParquetWriter(file, first, self._metadata)]
        if self._format in ("arrow", "feather"):
            return [ArrowWriter(file, first, self._metadata)]
        if self._format == "jsonl":
            return [JsonLinesWriter(file)]
        rows_path = side_file(self._output, "rows.parquet")
        if rows_path not in self._beside:
            return [NumpyWriter(file, first)]
        rows_writer = ParquetWriter(self._open(rows_path), first, self._metadata, with_vectors=False)
        return [NumpyWriter(file, first), rows_writer]
