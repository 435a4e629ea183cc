"""The folder that a cluster writes: tables to files, and from these the output, which appears when all are whole.

A run makes its files in a folder of its own within the output's, `_run-...`, which readers of lakes pass over. At the
end they are moved, the list of the output's files is replaced, and files that are in it no more are deleted.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from corpus.compute import VECTORS_AT_ONCE
from corpus.destination import SKIPPED, SUCCESS
from corpus.folders import folders_of
from corpus.output_files import SKIPPED_LISTED, nothing_written, skipped_line
from corpus.output_rows import OutputRows
from corpus.rows import BadRow, CorpusError, quoted
from corpus.sorted_keys import NO_KEYS, keys
from corpus.sources import file_system, reason
from corpus.writers import TableWriter

RUN = "_run-"
# Files that the driver looks into or moves at once.
FILES_AT_ONCE = 16


class Written(NamedTuple):
    """A file of vectors: its path below the output, its rows, and the keys of its texts' ids."""

    name: str
    rows: int
    keys: np.ndarray


class ClusterFolder:
    """The folder at a path or URL."""

    def __init__(self, output: str, run: Mapping[str, Any]) -> None:
        """`run` is what the run depends on besides the output. Raises CorpusError if it cannot be opened."""
        self._output = output
        self._files, inner = file_system(output, output)
        self._inner = inner.rstrip("/")
        known = json.dumps([run, self._json(SUCCESS)], sort_keys=True).encode()
        self.run = RUN + hashlib.blake2b(known, digest_size=8).hexdigest()
        self.listed: list[str] = []
        """The files of the output that the run replaces."""
        self.reused: list[str] = []
        """Paths or URLs of the files whose vectors it uses again: these, and those of runs that were interrupted."""
        self.done: list[Written] = []
        """What it wrote itself before it was interrupted."""

    def path(self, name: str) -> str:
        """Return the path or URL of a file or folder in it."""
        return str(self._files.unstrip_protocol(f"{self._inner}/{name}"))

    def _json(self, name: str) -> dict[str, Any] | None:
        with suppress(FileNotFoundError, ValueError):
            return dict(json.loads(self._files.cat_file(f"{self._inner}/{name}")))
        return None

    def _write(self, name: str, content: bytes) -> None:
        self._files.makedirs(f"{self._inner}/{os.path.dirname(name)}".rstrip("/"), exist_ok=True)
        self._files.pipe_file(f"{self._inner}/{name}", content)

    def _names(self) -> set[str]:
        self._files.invalidate_cache()
        return {path[len(self._inner) + 1 :] for path in self._files.find(self._inner)}

    def begin(self, update: bool) -> int:
        """Find out what is there. Of a run that was interrupted in its last steps, take these and return its rows.

        Raises CorpusError if the folder has an output that is not to be updated, or files that no run made.
        """
        for name in self._names():
            run, _, rest = name.partition("/")
            if run.startswith(RUN) and rest == SUCCESS:
                rows = self._deliver(run)
                if run == self.run:
                    return rows
        names, before = self._names(), self._json(SUCCESS)
        if before is not None and not update:
            raise CorpusError(self._output, "it is there already", "name another output, or update it (--update)")
        self.listed = sorted(names.intersection((before or {}).get("files", ())))
        of_runs = sorted(name for name in names if name.startswith(RUN))
        if strange := names.difference(self.listed, of_runs, [SUCCESS, SKIPPED]):
            problem = f"it has a file that no run made, {quoted(min(strange))}"
            raise CorpusError(self._output, problem, "move it away, or name another output")
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            whole = [file for file in pool.map(self._found, of_runs) if file]
        self.done = [file for file in whole if file.name.startswith(self.run)]
        earlier = (file.name for file in whole if not file.name.startswith(self.run))
        self.reused = [self.path(name) for name in (*self.listed, *earlier)]
        return 0

    def _found(self, name: str) -> Written | None:
        """Return a file of an interrupted run, if it is whole; delete it otherwise."""
        try:
            with self._files.open(f"{self._inner}/{name}", "rb") as file:
                parquet = pq.ParquetFile(file)
                table = parquet.read([column for column in ("id", "start") if column in parquet.schema_arrow.names])
        except pa.ArrowInvalid:
            self._files.rm_file(f"{self._inner}/{name}")
            return None
        return Written(name, table.num_rows, first_keys([table]))

    def keep(self, new: Sequence[Written]) -> list[Written]:
        """Return the files with those rows of the old output whose ids the new ones lack; tasks of Ray write them."""
        ids = ray.put(np.sort(ids_of((*self.done, *new))))
        task = ray.remote(max_retries=-1)(kept)
        tasks = [task.remote(self.path(""), name, self.run, i, ids) for i, name in enumerate(self.listed)]
        return [file for file in ray.get(tasks) if file]

    def finish(self, written: Sequence[Written], skipped: Sequence[BadRow], facts: Mapping[str, Any]) -> int:
        """Make `written`, beside what was done before, the output, and return how many rows it has.

        Raises CorpusError for an id that is there twice, and for no row at all.
        """
        every = sorted((*self.done, *written), key=lambda file: file.name)
        if not every:
            raise nothing_written(self._output, next(iter(skipped), None))
        self._check_unique(every)
        files = {file.name.removeprefix(f"{self.run}/"): file.rows for file in every}
        if skipped:
            self._write(f"{self.run}/{SKIPPED}", b"".join(map(skipped_line, skipped[:SKIPPED_LISTED])))
        gone = [*(name for name in self.listed if name not in files), *([] if skipped else [SKIPPED])]
        listed = {**facts, "rows": sum(files.values()), "files": files}
        self._write(f"{self.run}/{SUCCESS}", json.dumps({"list": listed, "gone": gone}).encode())
        return self._deliver(self.run)

    def _check_unique(self, files: Sequence[Written]) -> None:
        ordered = np.sort(ids_of(files))
        twice = ordered[1:][ordered[1:] == ordered[:-1]]
        for file in files if len(twice) else ():
            if twice[0] in file.keys:
                with self._files.open(f"{self._inner}/{file.name}", "rb") as opened:
                    ids = pq.read_table(opened, columns=["id"])["id"]
                value = ids[int(np.flatnonzero(keys(ids) == twice[0])[0])].as_py()
                problem = f"{quoted(value)} is there twice, and with --ray rows are told by their ids"
                raise CorpusError("id", problem, "make them unique, or leave --id out and carry the column")

    def _deliver(self, run: str) -> int:
        """Move the files of a run that is whole to their places, and return how many rows the output has.

        It can be called again after an interruption.
        """
        plan = self._json(f"{run}/{SUCCESS}")
        assert plan
        names = [name.removeprefix(f"{run}/") for name in self._names() if name.startswith(f"{run}/")]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(self._move, [run] * len(names), {*names} & {*plan["list"]["files"], SKIPPED}))
        self._write(SUCCESS, json.dumps(plan["list"], indent=1).encode())
        for name in plan["gone"]:
            with suppress(FileNotFoundError):
                self._files.rm_file(f"{self._inner}/{name}")
        for folder in {name.partition("/")[0] for name in self._names() if name.startswith(RUN)}:
            self._files.rm(f"{self._inner}/{folder}", recursive=True)
        return int(plan["list"]["rows"])

    def _move(self, run: str, name: str) -> None:
        path = f"{self._inner}/{name}"
        self._files.makedirs(os.path.dirname(path), exist_ok=True)
        self._files.mv(f"{self._inner}/{run}/{name}", path)


class FolderSink(ray.data.Datasink):
    """Takes packed tables, and writes about `file_bytes` at a time as a file of a run's folder, or one a partition."""

    def __init__(self, folder: str, partition: Sequence[str], file_bytes: int) -> None:
        self._folder, self._partition, self._bytes = folder, partition, file_bytes
        self._mark = uuid.uuid4().hex[:12]
        self.written: list[Written] = []
        self.skipped: list[BadRow] = []
        """Both are known when Ray is done, and then also hold for a task that it ran twice."""

    @property
    def min_bytes_per_write(self) -> int:
        return self._bytes

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> tuple[list[Written], list[BadRow]]:
        """Write what a task gets; Ray may call it again with the same."""
        files, skipped = dict[str, VectorFile](), list[BadRow]()
        with ExitStack() as opened:
            for rows, unfit in (pair for block in blocks for pair in zip(block["rows"], block["skipped"], strict=True)):
                skipped += [BadRow(*row) for row in json.loads(unfit.as_py())]
                table = unpacked(rows)
                folders = np.array([*folders_of(table, self._partition)] if table.num_rows else [])
                for folder in np.unique(folders).tolist():
                    name = os.path.join(folder, f"part-{self._mark}-{ctx.task_idx:06d}.parquet")
                    if name not in files:
                        files[name] = opened.enter_context(VectorFile(self._folder, name))
                    chosen = table.filter(pa.array(folders == folder))
                    files[name].write(chosen.drop_columns([*self._partition]))
        return [file.written() for file in files.values()], skipped

    def on_write_complete(self, write_result: Any) -> None:
        """Gather what all tasks have written."""
        self.written = [file for written, _ in write_result.write_returns for file in written]
        self.skipped = [row for _, skipped in write_result.write_returns for row in skipped]


class VectorFile:
    """A .parquet file of vectors in a run's folder, in a with block; after an error there is none."""

    def __init__(self, folder: str, name: str) -> None:
        self._files, inner = file_system(folder, folder)
        self._path, self._name = f"{inner}/{name}", f"{os.path.basename(inner)}/{name}"
        self._rows, self._ids = 0, list[pa.Table]()
        self._files.makedirs(os.path.dirname(self._path), exist_ok=True)
        self._file = self._files.open(self._path, "wb")
        self._writer: TableWriter | None = None

    def write(self, table: pa.Table) -> None:
        """Append rows, which have their vectors in the column `embedding`."""
        self._rows += table.num_rows
        self._ids.append(table.select([name for name in ("id", "start") if name in table.schema.names]))
        for batch in table.combine_chunks().to_batches(max_chunksize=VECTORS_AT_ONCE):
            vectors = np.asarray(batch["embedding"].flatten()).reshape(batch.num_rows, -1)
            rows = OutputRows(pa.table(batch).drop_columns(["embedding"]), vectors)
            self._writer = self._writer or TableWriter(self._file, rows, table.schema.metadata)
            self._writer.write(rows)

    def __enter__(self) -> "VectorFile":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self._writer:
            self._writer.close()
        self._file.close()
        if error:
            self._files.rm_file(self._path)

    def written(self) -> Written:
        """Return what the file has, once it is closed."""
        return Written(self._name, self._rows, first_keys(self._ids))


def kept(folder: str, name: str, run: str, number: int, ids: np.ndarray) -> Written | None:
    """Return the file with those rows of an old file whose ids are not among `ids`: itself if it is all of them."""
    files, inner = file_system(folder, folder)
    with ExitStack() as opened:
        parquet = pq.ParquetFile(opened.enter_context(files.open(f"{inner}/{name}", "rb")))
        columns = parquet.read([column for column in ("id", "start") if column in parquet.schema_arrow.names])
        stays = ~are_among(keys(columns["id"]), ids)
        if not stays.any():
            return None
        if stays.all():
            return Written(name, len(stays), first_keys([columns]))
        path = os.path.join(os.path.dirname(name), f"part-{run.removeprefix(RUN)}-kept-{number:06d}.parquet")
        at, file = 0, opened.enter_context(VectorFile(files.unstrip_protocol(f"{inner}/{run}"), path))
        for batch in parquet.iter_batches(VECTORS_AT_ONCE):
            file.write(pa.table(batch).filter(pa.array(stays[at : at + batch.num_rows])))
            at += batch.num_rows
    return file.written()


def are_among(wanted: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Return for each wanted key whether it is among the ordered ones."""
    if not len(ordered):
        return np.zeros(len(wanted), bool)
    return ordered[np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)] == wanted


def ids_of(files: Iterable[Written]) -> np.ndarray:
    """Return the keys of all ids in files."""
    return np.concatenate([NO_KEYS, *(file.keys for file in files)])


def first_keys(tables: Sequence[pa.Table]) -> np.ndarray:
    """Return the key of each text's id: the chunks of a text stand together, and begin one after the other."""
    known = np.concatenate([NO_KEYS, *(keys(table["id"]) for table in tables)])
    begins = np.ones(len(known), bool)
    if tables and "start" in tables[0].schema.names:
        starts = np.concatenate([table["start"].to_numpy() for table in tables])
        begins[1:] = (known[1:] != known[:-1]) | (starts[1:] <= starts[:-1])
    return known[begins]


def packed(table: pa.Table, skipped: Sequence[BadRow] = ()) -> pa.Table:
    """Return a table as a single row, which Ray neither divides nor joins to others, with rows without a vector."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    rows = json.dumps([(row.number, row.problem, row.file) for row in skipped])
    return pa.table({"rows": pa.array([sink.getvalue().to_pybytes()], pa.large_binary()), "skipped": [rows]})


def unpacked(rows: pa.Scalar) -> pa.Table:
    """Return the table in a row."""
    return pa.ipc.open_stream(rows.as_buffer()).read_all()


def facts_of(path: str) -> str:
    """Return what changes when a file does. Raises CorpusError."""
    files, inner = file_system(path, path)
    try:
        known = files.info(inner)
    except OSError as error:
        raise CorpusError(path, f"cannot be opened: {reason(error)}", "check the path") from error
    return " ".join((path, *(str(known[key]) for key in ("size", "ETag", "mtime", "LastModified") if key in known)))
