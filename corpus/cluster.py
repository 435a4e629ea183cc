"""The engine in the actors of a Ray cluster: files of any format in, a folder of parquet out, each a path or a URL.

`scripts.embed_corpus --ray` comes here. Ray Data distributes, retries and scales: its tasks read files into blocks, an
actor takes each block, and tasks write the vectors.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import ray

import engine
import weights
from corpus.blocks import BLOCK, BLOCK_COLUMNS, FILE, NUMBER, PROBLEM, TEXT, BlockLimits, blocks, blocks_of
from corpus.cluster_folder import ClusterFolder, FolderSink, are_among, facts_of, ids_of, packed, unpacked
from corpus.compute import TextVectors, compute, prepare_block
from corpus.destination import Destination
from corpus.inputs import Inputs
from corpus.limits import MB
from corpus.output_rows import output_rows, unfit_rows, vector_array
from corpus.previous import Previous, keys, parquet_parts
from corpus.rows import BadRow, CorpusError, Row, UnfitRow
from texts.options import Options

ROOT = Path(__file__).parent.parent
# Parts of this checkout that the machines of a cluster are not sent.
NOT_SENT = [".git", ".venv", "weights-cache", "weights-baked", "docs", "tests"]
# Rows of a block by default; when an actor dies, its block is computed again.
BLOCK_ROWS = 8_192
# Files that a task looks into, and tasks that read them.
FILES_OF_TASK, TASKS_MOST = 16, 10_000


@dataclass(frozen=True, slots=True)
class ActorJob:
    """What tasks and actors do with an input."""

    weights: str | None
    options: Options
    skip: bool
    block_rows: int = BLOCK_ROWS
    dtype: str = "auto"
    """What all actors compute in; auto for what suits a GPU."""


def read(files: pa.Table, job: ActorJob, inputs: Inputs) -> Iterator[pa.Table]:
    """Yield the rows of a file's blocks, packed, with texts and titles in place of where these are.

    Raises CorpusError for what cannot be read or embedded.
    """
    limits = BlockLimits(job.block_rows, remembered=0)
    with closing(inputs.only(files["name"][0].as_py())) as file, _in_words(inputs):
        for block, _ in blocks_of(file, limits, job.options.chunking, job.skip):
            numbers, table = block.rows[TEXT].to_pylist(), block.rows
            for name, values in ((TEXT, block.texts), (BLOCK, block.titles)):
                found = pa.array([values[i] if i >= 0 else None for i in numbers], pa.string())
                table = table.set_column(table.schema.get_field_index(name), name, found)
            yield packed(table)


@contextmanager
def _in_words(inputs: Inputs) -> Iterator[None]:
    """Raise CorpusError for a row that stops the run."""
    try:
        yield
    except UnfitRow as unfit:
        remedy = "Mend it, or skip such rows (on-error skip)"
        raise CorpusError(inputs.place(unfit.row), unfit.row.problem, remedy) from None


class Embedder:
    """An actor: a block of rows to a table of vectors."""

    def __init__(
        self, job: ActorJob, inputs: Inputs, reused: Sequence[str], done: np.ndarray, beside: Sequence[pa.Field] = ()
    ) -> None:
        """Load the checkpoint, which is fetched if this machine does not have it, and what the files `reused` have.

        `done` are the ordered keys of ids to leave out. Raises CorpusError for files of another model or other options,
        or without the columns `beside`.
        """
        self._job, self._inputs = job, inputs
        checkpoint = weights.resolve(job.weights)
        self._engine = engine.load(checkpoint.directory, job.dtype)
        self._metadata = {"model": checkpoint.computed_in(self._engine.number_format), **job.options.described()}
        self._done, self._previous = done, None
        if reused:
            parts = {path: parquet_parts(fsspec.open(path).open()) for path in reused}
            self._previous = Previous("the output", parts, self._metadata, "")
            self._previous.check_columns(beside)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Return the vectors of the rows in their order, without ids that are done; with `skip` also the unfit rows.

        Raises CorpusError at a row that has no vector, unless `skip`.
        """
        job, table = self._job, unpacked(batch["rows"][0])
        table = table.filter(pa.array(~are_among(keys(table["id"]), self._done)))
        if not table.num_rows:
            return packed(table)
        find = self._previous.find if self._previous else None
        limits = BlockLimits(rows=table.num_rows, chars=1 << 62, remembered=0)
        [block] = blocks(_rows(table), limits, (), True, table.schema.field("id").type, find)
        carried = table.drop_columns([*BLOCK_COLUMNS, "id"])
        rows = block.rows
        for field, column in zip(carried.schema, carried.columns, strict=True):
            rows = rows.append_column(field, column)
        with _in_words(self._inputs):
            prepared = prepare_block(self._engine.tokenizer, job.options, block, job.skip)
        vectors = compute(self._engine.embed, job.options, prepared)

        def vectors_of(block: int) -> TextVectors:
            return vectors if block >= 0 or self._previous is None else self._previous.vectors(block)

        tables = [
            part.table.add_column(1, "embedding", vector_array(part.vectors))
            for part in output_rows(rows, vectors_of, job.options.chunking is not None)
        ]
        found = pa.concat_tables(tables) if tables else pa.table({})
        return packed(found.replace_schema_metadata(self._metadata), unfit_rows(rows, vectors_of))


def _rows(table: pa.Table) -> Iterator[Row | BadRow]:
    columns = [table[name].to_pylist() for name in (NUMBER, PROBLEM, FILE, "id", TEXT, BLOCK)]
    for number, problem, file, row_id, text, title in zip(*columns, strict=True):
        yield BadRow(number, problem, file) if problem else Row(number, text, title, row_id, (), file)


def embed(
    open_inputs: Callable[..., Inputs], job: ActorJob, destination: Destination, address: str, workers: tuple[int, int]
) -> tuple[int, int]:
    """Embed files into a folder; return how many rows it has, in no fixed order, and how many have no vector.

    `open_inputs` is given what looks into the files. `address` is a cluster's, or "local" for a cluster of this
    machine; `workers` are the fewest and the most actors. What an interrupted run has written is not computed again.
    Raises CorpusError in words when it fails, and when a row stops the run.
    """
    _connect(address, workers[1])
    on_gpus = ray.cluster_resources().get("GPU", 0) > 0
    # Machines without a GPU may differ in which format is faster, but an output has a single format.
    job = replace(job, dtype=os.environ.get("DTYPE", "").strip() or ("auto" if on_gpus else "float32"))
    partition, stay = destination.partition, destination.update and not destination.remove
    try:
        facts: list[str] = []
        inputs = open_inputs(look_into=partial(_look_into, facts))
        inputs.settle_ids()
        run = {"job": repr(job), "inputs": repr(open_inputs), "files": facts, "partition": partition, "stay": stay}
        folder = ClusterFolder(destination.target, run)
        if rows := folder.begin(destination.update):
            return rows, 0
        fields = [pa.field("id", inputs.id_type), *(f for f in inputs.carried_fields if f.name not in partition)]
        beside = fields if stay and folder.listed else []
        sink = FolderSink(folder.path(folder.run), partition, destination.file_mb * MB)
        arguments = (job, inputs, folder.reused, np.sort(ids_of(folder.done)), beside)
        _vectors(arguments, workers, on_gpus).write_datasink(sink)
        written = [*sink.written, *(folder.keep(sink.written) if stay else ())]
        return folder.finish(written, sink.skipped, job.options.described()), len(sink.skipped)
    except (ray.exceptions.RayError, OSError, ValueError, pa.ArrowException) as error:
        raise CorpusError("", _sentence(error)) from error


def _vectors(arguments: tuple[Any, ...], workers: tuple[int, int], on_gpus: bool) -> ray.data.Dataset:
    """Return the blocks of the input's files, each as a row, as actors embed them that are made with `arguments`."""
    job, inputs, *_ = arguments
    names = [{"name": file.name} for file in inputs.files]
    files = ray.data.from_items(names, override_num_blocks=min(len(names), TASKS_MOST))
    rows = files.map_batches(read, fn_args=(job, inputs), batch_format="pyarrow", batch_size=1)
    # Each row by itself, so that an actor has a block at a time, and reads no files itself.
    return rows.repartition(target_num_rows_per_block=1).map_batches(
        Embedder,
        fn_constructor_args=arguments,
        batch_format="pyarrow",
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
        num_gpus=1 if on_gpus else None,
        num_cpus=0 if on_gpus else 1,
    )


def _look_into(facts: list[str], survey: Callable[[Any], Any], files: list[Any]) -> Iterator[Any]:
    """Look into files in tasks, which run again when a machine is lost, and note their `facts`."""
    task, parts = ray.remote(max_retries=-1)(survey_part), range(0, len(files), FILES_OF_TASK)
    for part in ray.get([task.remote(survey, files[first : first + FILES_OF_TASK]) for first in parts]):
        for file, fact in part:
            facts.append(fact)
            yield file


def survey_part(survey: Callable[[Any], Any], files: list[Any]) -> list[tuple[Any, str]]:
    """Return files that have been looked into, each with what changes when it does."""
    return [(survey(file), facts_of(file.file.path)) for file in files]


def _connect(address: str, actors: int) -> None:
    """Join the cluster at `address`, or for "local" make a cluster of this machine."""
    if address == "local":
        environment: dict[str, Any] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        # An actor holds a CPU for as long as it lives; without a spare CPU nothing would ever be read.
        cpus = max(os.cpu_count() or 1, actors + 1)
        ray.init(address="local", num_cpus=cpus, runtime_env=environment, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address, runtime_env={"working_dir": str(ROOT), "excludes": NOT_SENT})


def _sentence(error: BaseException) -> str:
    """Return the sentence that an actor raised: Ray passes it on only as the last line of a printed stack."""
    sentences = re.findall(rf"^.*\b{CorpusError.__name__}: (.+)$", str(error), re.MULTILINE)
    return sentences[-1] if sentences else str(error)
