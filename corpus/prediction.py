"""A corpus within a prediction: its windows go through the queue that all requests share."""

import asyncio
import contextvars
import json
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from batching.errors import Busy
from batching.request import Cost
from corpus.blocks import Limits
from corpus.pipeline import Pipeline
from corpus.readers import Reader, UnknownFormat
from corpus.rows import Columns, CorpusError
from corpus.run import Job, Progress, Stopped, check_output, parts_of, run
from corpus.shards import Parts
from corpus.writers import side_file
from engine.contract import Ranges
from engine.tokenizer import Tokenizer
from texts.options import Options

logger = logging.getLogger(__name__)

# Small, so that others come in between and a cancelled prediction ends soon.
LIMITS = Limits(rows=2_048, chars=1 << 22, remembered=1 << 18)
LOG_EVERY_S = 5.0
SKIPPED_LOGGED = 100
# The queue is full of other requests' work: a corpus has time.
BUSY_WAIT_S = 0.2

Embed = Callable[[Sequence[Sequence[int]], Ranges | None], Awaitable[tuple[np.ndarray, Cost]]]


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a prediction: the path that Cog downloaded it to, and what the prediction says of it.

    `file_format` is `auto` where the name tells. Raises ValueError for what is no download.
    """

    path: Path | str
    file_format: str
    columns: Columns
    skip: bool
    output_format: str

    def __post_init__(self) -> None:
        # Cog hands on what it did not download as a string: never a path of this machine.
        if isinstance(self.path, str):
            raise ValueError(
                f"file: {self.path[:80]!r} is no URL; give one that begins with http://, https:// or data:"
            )


def check_beside_file(**inputs: object) -> None:
    """Raise ValueError for texts and titles that are given beside a file."""
    if given := [name for name, value in inputs.items() if value is not None]:
        raise ValueError(f"file, {', '.join(given)}: give a file, whose columns have texts and titles, or give texts")


def _check_told_apart(source: Source, options: Options) -> None:
    """Raise ValueError where a file of nothing but vectors would not tell which is which."""
    reason = "chunk" if options.chunking is not None else "on_error 'skip'" if source.skip else None
    if source.output_format == "npy" and reason:
        raise ValueError(f"output_file: 'npy' has no ids to tell rows by, with {reason}; use 'parquet' or 'jsonl'")


async def embed_file(
    source: Source, output: Path, options: Options, tokenizer: Tokenizer, embed: Embed, model: str
) -> Progress:
    """Embed a file of texts into the file `output`, which must not exist, and log how far it is.

    Raises CorpusError naming the line and the remedy. When it is cancelled, nothing more is computed for it.
    """
    _check_told_apart(source, options)
    task = _Task(source, output, options, tokenizer, embed, asyncio.get_running_loop())
    thread = ThreadPoolExecutor(1, "corpus")  # of its own: it is busy for as long as the file takes
    try:
        # With the prediction's context, which its logs find their way by.
        return await task.loop.run_in_executor(thread, contextvars.copy_context().run, task.run, model)
    except UnknownFormat:
        raise CorpusError("file: the end of its name does not say what it is; say so in file_format") from None
    except CorpusError as error:
        said = str(error).replace(str(source.path), "file").replace(str(output), "the answer's file")
        raise CorpusError(said) from None
    finally:
        task.stop()
        thread.shutdown(wait=False)


class _Task:
    """One file's run, in a thread of its own, computing on the event loop's batcher."""

    def __init__(
        self,
        source: Source,
        output: Path,
        options: Options,
        tokenizer: Tokenizer,
        embed: Embed,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._source, self._output, self._options = source, output, options
        self._tokenizer, self._embed, self.loop = tokenizer, embed, loop
        self._stopped = threading.Event()
        self._computing: Future[np.ndarray] | None = None

    def run(self, model: str) -> Progress:
        source = self._source
        form = check_output(self._output)
        reader = Reader(str(source.path), source.columns, None if source.file_format == "auto" else source.file_format)
        parts = Parts(parts_of(self._output), reader.carried_fields)
        parts.open({})
        pipeline = Pipeline(self._tokenizer, self._compute, self._options, parts, source.skip)
        job = Job(reader, self._output, form, self._options, LIMITS, parts, source.skip)
        try:
            with closing(reader), closing(pipeline), closing(run(job, pipeline.submit, 1, {"model": model})) as steps:
                progress = self._follow(steps)
        except Stopped as stopped:
            place = reader.place(stopped.row.number)
            raise CorpusError(
                f"{place}: {stopped.row.problem}. Mend it, or skip such rows with on_error 'skip'"
            ) from None
        finally:
            parts.remove()  # nobody goes on with it
        if progress.skipped:
            self._log_skipped(reader, progress.skipped)
        return progress

    def _follow(self, steps: Iterator[Progress]) -> Progress:
        """Log how far the run is, until it is done or stopped."""
        progress, logged = Progress(), time.monotonic()
        for progress in steps:
            if self._stopped.is_set():
                break
            if progress.finished or time.monotonic() - logged >= LOG_EVERY_S:
                logged = time.monotonic()
                logger.info("%d of about %d rows, %d tokens", progress.rows, progress.expected, progress.tokens)
        return progress

    def _log_skipped(self, reader: Reader, count: int) -> None:
        with side_file(self._output, "skipped.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, islice(lines, SKIPPED_LOGGED)):
                logger.warning(
                    "%s: %s; skipped", reader.place(row["number"]).replace(reader.path, "file"), row["problem"]
                )
        if count > SKIPPED_LOGGED:
            logger.warning("and %d more rows were skipped", count - SKIPPED_LOGGED)

    def _compute(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None) -> np.ndarray:
        """Wait for the batcher, in the pipeline's thread. Raises concurrent.futures.CancelledError once stopped."""
        while True:
            self._computing = asyncio.run_coroutine_threadsafe(self._wait(token_ids, ranges), self.loop)
            if self._stopped.is_set():
                self._computing.cancel()
            try:
                return self._computing.result()
            except Busy:
                self._stopped.wait(BUSY_WAIT_S)

    async def _wait(self, token_ids: Sequence[Sequence[int]], ranges: Ranges | None) -> np.ndarray:
        return (await self._embed(token_ids, ranges))[0]

    def stop(self) -> None:
        """Begin nothing more, and let go of what waits."""
        self._stopped.set()
        if self._computing is not None:
            self._computing.cancel()
