"""The engine in the actors of a Ray cluster: parquet in, a folder of parquet out, each a path or a URL.

`scripts.embed_corpus --ray` comes here. Ray Data reads, distributes, retries, scales and writes; an actor takes each
batch of rows as a window.
"""

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

import engine
import weights
from corpus.blocks import Limits, windows
from corpus.pipeline import compute, shard_of, tokenize
from corpus.rows import BadRow, Columns, CorpusError, Row, make_row
from corpus.shards import Shard
from corpus.writers import vector_array
from texts.options import Options

ROOT = Path(__file__).parent.parent
# What the machines of a cluster are not sent of this checkout.
NOT_SENT = [".git", ".venv", "weights-cache", "weights-baked", "docs", "tests"]
# Rows of a batch unless --window says otherwise: what is computed again when an actor dies.
BATCH_ROWS = 8_192
PATH = "path"  # the column in which Ray Data tells a row's file
PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Work:
    """What an actor is to do. `columns.id` is set: elsewhere rows are told by their number, which batches have not."""

    weights: str | None
    settings: Options
    columns: Columns
    skip: bool


class Embedder:
    """An actor: a table of rows to a table of vectors."""

    def __init__(self, work: Work) -> None:
        """Load the checkpoint, which is fetched where this machine has not got it."""
        self._work = work
        checkpoint = weights.resolve(work.weights)
        self._engine = engine.load(checkpoint.directory)
        self._metadata = {"model": checkpoint.name, **work.settings.described()}

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the vectors of the rows in their order; with `skip` also the unfit rows, without one, and why.

        Raises CorpusError naming file and id at a row that has no vector, unless it is to be skipped.
        """
        if not table.num_rows:
            return table
        limits = Limits(rows=table.num_rows, chars=1 << 62, remembered=1)
        [window] = windows(self._rows(table), limits)
        tokenized = tokenize(self._engine.tokenizer, self._work.settings, window)
        shard = shard_of(window, tokenized, compute(self._engine.embed, self._work.settings, tokenized.prepared))
        problems = {row.number: row.problem for row in window.bad}
        texts = window.sources[:, 1].tolist()
        refused = tokenized.refused
        problems |= {i: refused[text] for i, text in zip(window.numbers, texts, strict=True) if text in refused}
        if problems and not self._work.skip:
            first = min(problems)
            place = f"{table[PATH][first]}, {self._work.columns.id} {table[self._work.columns.id][first]}"
            raise CorpusError(f"{place}: {problems[first]}. Mend it, or skip such rows (on-error skip)")
        return self._output(table, shard, problems)

    def _rows(self, table: pa.Table) -> Iterator[Row | BadRow]:
        columns = self._work.columns
        for i, values in enumerate(table.select(columns.wanted()).to_pylist()):
            try:
                yield make_row(columns, i, values)
            except ValueError as error:
                yield BadRow(i, str(error))

    def _output(self, table: pa.Table, shard: Shard, problems: dict[int, str]) -> pa.Table:
        offsets = np.searchsorted(shard.owners, np.arange(len(shard.window.texts) + 1)).tolist()
        texts = shard.window.sources[:, 1].tolist()
        pairs = [(i, -1) for i in problems]  # row and vector
        for i, text in zip(shard.window.numbers, texts, strict=True):
            pairs.extend((i, position) for position in range(offsets[text], offsets[text + 1]))
        rows, positions = np.array(sorted(pairs)).T
        lacks = pa.array(positions < 0)

        def of_vectors(values: np.ndarray) -> pa.Array:
            filled = values[positions] if len(values) else np.zeros(len(positions), dtype=values.dtype)
            return pa.array(filled, mask=positions < 0)

        vectors = shard.vectors if len(shard.vectors) else np.zeros((1, shard.vectors.shape[1]), shard.vectors.dtype)
        taken = table.take(pa.array(rows))
        columns = {"id": taken[self._work.columns.id], "embedding": vector_array(vectors[positions], lacks)}
        columns |= {"token_count": of_vectors(shard.token_counts), "truncated": of_vectors(shard.truncated)}
        if self._work.settings.chunking:
            columns |= {"start": of_vectors(shard.ranges[:, 0]), "end": of_vectors(shard.ranges[:, 1])}
        if self._work.skip:
            columns[PROBLEM] = pa.array([problems.get(i) for i in rows.tolist()], pa.string())
        columns |= {name: taken[name] for name in self._work.columns.carried}
        return pa.table(columns).replace_schema_metadata(self._metadata)


def embed(args: argparse.Namespace, settings: Options, columns: Columns) -> int:
    """Embed `args.input` into the folder `args.output` and return how many rows it has, which are in no certain order.

    Raises CorpusError in words for what cannot be done, and when a row stops the run.
    """
    if columns.id is None:
        raise CorpusError("id: with --ray rows are told by their ids; name their column with --id")
    for name in (PATH, PROBLEM):
        if name in columns.wanted():
            raise CorpusError(f"{name}: with --ray this column has another use; rename it in the input")
    work = Work(args.weights, settings, columns, args.on_error == "skip")
    _connect(args.ray, args.workers[1])
    on_gpus = ray.cluster_resources().get("GPU", 0) > 0
    least, most = args.workers
    try:
        rows = ray.data.read_parquet(args.input, columns=columns.wanted(), include_paths=True)
        vectors = rows.map_batches(
            Embedder,
            fn_constructor_args=(work,),
            batch_format="pyarrow",
            batch_size=args.window or BATCH_ROWS,
            compute=ray.data.ActorPoolStrategy(min_size=least, max_size=most),
            num_gpus=1 if on_gpus else None,
            num_cpus=0 if on_gpus else 1,
        )
        vectors.write_parquet(args.output, mode="error")
        return int(ray.data.read_parquet(args.output, columns=["id"]).count())
    except (ray.exceptions.RayError, OSError, ValueError, pa.ArrowException) as error:
        raise CorpusError(_in_words(error)) from error


def _connect(address: str, actors: int) -> None:
    """Join the cluster at `address`, or make one of this machine for "local"."""
    if address == "local":
        here: dict[str, Any] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        # An actor holds a CPU for as long as it lives, and without one more nothing would ever be read.
        cpus = max(os.cpu_count() or 1, actors + 1)
        ray.init(address="local", num_cpus=cpus, runtime_env=here, include_dashboard=False, log_to_driver=False)
    else:
        ray.init(address=address, runtime_env={"working_dir": str(ROOT), "excludes": NOT_SENT})


def _in_words(error: BaseException) -> str:
    """Return the sentence that an actor raised, which Ray hands on only as the last line of a printed stack."""
    sentences = re.findall(rf"^.*\b{CorpusError.__name__}: (.+)$", str(error), re.MULTILINE)
    return sentences[-1] if sentences else str(error)
