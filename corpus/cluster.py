"""The engine in the actors of a Ray cluster: parquet in, a folder of parquet out, each a path or a URL.

`scripts.embed_corpus --ray` comes here. Ray Data reads, distributes, retries, scales and writes; an actor takes each
batch of rows as a block.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

import encoding
import engine
import weights
from corpus.arrow import batch_rows, check_schema, column_of, plain
from corpus.blocks import BLOCK_COLUMNS, HASH, BlockLimits, blocks
from corpus.cluster_folder import ClusterFolder, There, facts_of
from corpus.compute import VECTORS_AT_ONCE, TextVectors, compute, prepare_block
from corpus.destination import Destination
from corpus.limits import MB
from corpus.listing import listed
from corpus.output_rows import fact_fields, output_rows, unfit_rows, vector_array
from corpus.previous import Previous, Sorted, keys, parquet_parts
from corpus.rows import TEXT_HASH, BadRow, Columns, CorpusError, Row, UnfitRow
from texts.options import Options

ROOT = Path(__file__).parent.parent
# Parts of this checkout that the machines of a cluster are not sent.
NOT_SENT = [".git", ".venv", "weights-cache", "weights-baked", "docs", "tests"]
# Rows of a batch by default; when an actor dies, its batch is computed again.
BATCH_ROWS = 8_192
PATH = "path"  # the column in which Ray Data tells a row's file
PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class ActorJob:
    """What an actor does. `columns.id` must be set, as ids identify the rows: batches have no numbers."""

    weights: str | None
    options: Options
    columns: Columns
    skip: bool
    dtype: str = "auto"
    """What all actors compute in; auto for what suits a GPU."""

    def __post_init__(self) -> None:
        if self.columns.id is None:
            raise CorpusError("id", "with --ray rows are told by their ids", "name their column with --id")
        for name in (PATH, PROBLEM):
            if name in self.columns.wanted():
                raise CorpusError(name, "with --ray this column has another use", "rename it in the input")


def parquet_files(inputs: Sequence[str]) -> list[str]:
    """Return the paths of an input's files. Raises CorpusError for one of another format, which Ray does not read."""
    paths = [file.path for file in listed(inputs)]
    if other := next((path for path in paths if not path.lower().endswith(".parquet")), None):
        raise CorpusError(
            other, "with --ray only .parquet is read", "name the others with a glob, such as **/*.parquet"
        )
    return paths


class Embedder:
    """An actor: a table of rows to a table of vectors."""

    def __init__(self, job: ActorJob, there: There | None = None) -> None:
        """Load the checkpoint, which is fetched if this machine does not have it, and what the output has already.

        Raises CorpusError if that is of another model or other options.
        """
        self._job = job
        checkpoint = weights.resolve(job.weights)
        self._engine = engine.load(checkpoint.directory, job.dtype)
        self._metadata = {"model": checkpoint.computed_in(self._engine.number_format), **job.options.described()}
        before, done = there or There()
        self._previous = self._done = None
        if before:
            parts = {path: parquet_parts(fsspec.open(path).open()) for path in before}
            self._previous = Previous("the output", parts, self._metadata, "")
        if done:
            ids = [keys(pq.read_table(fsspec.open(path).open(), columns=["id"])["id"]) for path in done]
            self._done = Sorted(np.concatenate(ids))

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the vectors of the rows in their order; with `skip` also the unfit rows, without a vector, and why.

        Raises CorpusError naming file and id at a row that has no vector, unless `skip`.
        """
        if not table.num_rows:
            return table
        columns = self._job.columns.carrying(name for name in table.schema.names if name != PATH)
        names = [*check_schema(str(table[PATH][0]), table.schema, columns), PATH]
        arrays = [column_of(table, name) for name in names]
        table = pa.table([array.cast(plain(array.type)) for array in arrays], names=names)
        self._job = job = replace(self._job, columns=columns)
        if self._done is not None:
            table = table.filter(pa.array(self._done.find(keys(table[job.columns.id])) < 0))
            if not table.num_rows:
                return self._schema(table.schema).empty_table()
        find = self._previous.find if self._previous else None
        limits = BlockLimits(rows=table.num_rows, chars=1 << 62, remembered=0)
        carried = [table.schema.field(name) for name in job.columns.carried]
        try:
            id_type = table.schema.field(job.columns.id).type
            [block] = blocks(self._rows(table), limits, carried, job.skip, id_type, find)
            prepared = prepare_block(self._engine.tokenizer, job.options, block, job.skip)
        except UnfitRow as unfit:
            i = unfit.row.number
            place = f"{table[PATH][i]}, {job.columns.id} {table[job.columns.id][i]}"
            raise CorpusError(place, unfit.row.problem, "Mend it, or skip such rows (on-error skip)") from None
        vectors = compute(self._engine.embed, job.options, prepared)

        def vectors_of(block: int) -> TextVectors:
            return vectors if block >= 0 or self._previous is None else self._previous.vectors(block)

        tables = [
            rows.table.add_column(1, "embedding", vector_array(rows.vectors))
            for rows in output_rows(block.rows, vectors_of, job.options.chunking is not None)
        ]
        if job.skip:
            tables.append(self._without_vectors(table, unfit_rows(block.rows, vectors_of)))
        schema = self._schema(table.schema)
        return pa.concat_tables([schema.empty_table(), *tables], promote_options="permissive").cast(schema)

    def _schema(self, source: pa.Schema) -> pa.Schema:
        """Return the output's columns, which are the same for batches without any vector or any unfit row."""
        options, columns = self._job.options, self._job.columns
        return pa.schema(
            [
                pa.field("id", source.field(columns.id).type),
                pa.field("embedding", vector_array(_zeros(0, options)).type),
                *fact_fields(options.chunking is not None),
                *([pa.field(PROBLEM, pa.string())] if self._job.skip else []),
                *(source.field(name) for name in columns.carried),
                pa.field(TEXT_HASH, BLOCK_COLUMNS[HASH]),
            ],
            metadata=self._metadata,
        )

    def _rows(self, table: pa.Table) -> Iterator[Row | BadRow]:
        count = 0
        for batch in table.to_batches():
            yield from batch_rows(batch, self._job.columns, count, exact=True)
            count += batch.num_rows

    def _without_vectors(self, table: pa.Table, unfit: list[BadRow]) -> pa.Table:
        """Return the unfit rows of a batch with their ids, carried columns and problems."""
        columns = self._job.columns
        taken = table.take(pa.array([row.number for row in unfit], pa.int64()))
        no_vectors = vector_array(_zeros(len(unfit), self._job.options), pa.array([True] * len(unfit), pa.bool_()))
        arrays = {"id": taken[columns.id], "embedding": no_vectors}
        arrays[PROBLEM] = pa.array([row.problem for row in unfit], pa.string())
        return pa.table(arrays | {name: taken[name] for name in columns.carried})


def _zeros(count: int, options: Options) -> np.ndarray:
    return np.zeros((count, options.width), dtype=encoding.WIRE_DTYPES[options.precision])


def embed(
    job: ActorJob,
    sources: Sequence[str],
    destination: Destination,
    address: str,
    workers: tuple[int, int],
    batch_rows: int | None = None,
) -> int:
    """Embed the .parquet files `sources` into a folder and return how many rows it has, in no fixed order.

    `address` is a cluster's, or "local" for a cluster of this machine; `workers` are the fewest and the most actors.
    What an interrupted run has written is not computed again. Raises CorpusError in words when it fails, and when a row
    stops the run.
    """
    _connect(address, workers[1])
    on_gpus = ray.cluster_resources().get("GPU", 0) > 0
    # Machines without a GPU may differ in which format is faster, but an output has a single format.
    job = replace(job, dtype=os.environ.get("DTYPE", "").strip() or ("auto" if on_gpus else "float32"))
    facts = job.options.described()
    asked = {name: str(getattr(job, name)) for name in ("weights", "columns", "skip", "dtype")}
    folder = ClusterFolder(destination.target)
    partition, bytes_of_file = [*destination.partition], destination.file_mb * MB
    there = folder.begin({**facts, **asked, "partition": partition, "input": facts_of(sources)}, destination.update)
    try:
        # Ray reads no columns within columns: an actor takes them from the whole ones.
        wanted, is_nested = job.columns.wanted(), any("." in name for name in job.columns.wanted())
        chosen = None if is_nested or job.columns.carry_all else wanted
        rows = ray.data.read_parquet([*sources], columns=chosen, include_paths=True)
        vectors = rows.map_batches(
            Embedder,
            fn_constructor_args=(job, there),
            batch_format="pyarrow",
            batch_size=batch_rows or BATCH_ROWS,
            compute=ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
            num_gpus=1 if on_gpus else None,
            num_cpus=0 if on_gpus else 1,
        )
        vectors.write_parquet(
            destination.target,
            partition_cols=partition or None,
            min_bytes_per_file=None if partition else bytes_of_file,
            row_group_size=VECTORS_AT_ONCE,
        )
        return folder.finish(there, facts)
    except (ray.exceptions.RayError, OSError, ValueError, pa.ArrowException) as error:
        raise CorpusError("", _in_words(error)) from error


def _connect(address: str, actors: int) -> None:
    """Join the cluster at `address`, or for "local" make a cluster of this machine."""
    if address == "local":
        environment: dict[str, Any] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        # An actor holds a CPU for as long as it lives; without a spare CPU nothing would ever be read.
        cpus = max(os.cpu_count() or 1, actors + 1)
        ray.init(address="local", num_cpus=cpus, runtime_env=environment, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address, runtime_env={"working_dir": str(ROOT), "excludes": NOT_SENT})


def _in_words(error: BaseException) -> str:
    """Return the sentence that an actor raised: Ray passes it on only as the last line of a printed stack."""
    sentences = re.findall(rf"^.*\b{CorpusError.__name__}: (.+)$", str(error), re.MULTILINE)
    return sentences[-1] if sentences else str(error)
