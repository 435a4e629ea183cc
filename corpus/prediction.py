"""A corpus within a prediction: its blocks go through the queue that all requests share."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from batching.errors import Busy
from batching.request import Cost
from corpus.blocks import BlockLimits, blocks
from corpus.compute import PreparedBlock, finish, prepare_block
from corpus.readers import Reader, UnknownFormat
from corpus.rows import BadRow, Columns, CorpusError, UnfitRow
from corpus.sources import reason
from corpus.writers import OutputFiles
from engine.contract import Ranges
from engine.tokenizer import Tokenizer
from texts.options import Options
from texts.prepare import Prepared

logger = logging.getLogger(__name__)

# Small, so that others come in between and a cancelled prediction ends soon. Across blocks the batcher's cache knows
# duplicates.
LIMITS = BlockLimits(rows=2_048, chars=1 << 22, remembered=0)
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

    def open(self) -> Reader:
        """Open the file. Raises CorpusError."""
        return Reader(str(self.path), self.columns, None if self.file_format == "auto" else self.file_format)


@dataclass(slots=True)
class FileProgress:
    """How far a file is: `rows` of about `expected` that have a text, and `skipped` rows, which have no vector.

    `prompted` vectors are of texts that began with one of the model's prompts.
    """

    rows: int = 0
    expected: int = 0
    skipped: int = 0
    prompted: int = 0
    tokens: int = 0
    first_skipped: list[BadRow] = field(default_factory=list)
    """At most SKIPPED_LOGGED."""

    def log(self) -> None:
        """Log how far the file is."""
        logger.info("%d of about %d rows, %d tokens", self.rows, self.expected, self.tokens)

    def log_skipped(self, place: Callable[[int], str]) -> None:
        """Log which rows have no vector."""
        for row in self.first_skipped:
            logger.warning("%s: %s; skipped", place(row.number), row.problem)
        if self.skipped > SKIPPED_LOGGED:
            logger.warning("and %d more rows were skipped", self.skipped - SKIPPED_LOGGED)


def check_beside_file(**inputs: object) -> None:
    """Raise ValueError for texts and titles that are given beside a file."""
    if given := [name for name, value in inputs.items() if value is not None]:
        raise ValueError(f"file, {', '.join(given)}: give a file, whose columns have texts and titles, or give texts")


def _check_rows_identified(source: Source, options: Options) -> None:
    """Raise ValueError where a file of nothing but vectors would not tell whose they are."""
    reasons = {"chunk": options.chunking, "on_error 'skip'": source.skip, "id_column": source.columns.id}
    reason = next((name for name, given in reasons.items() if given), None)
    if source.output_format == "npy" and reason:
        raise ValueError(f"output_file: 'npy' has no ids to tell rows by, with {reason}; use 'parquet' or 'jsonl'")


async def embed_file(
    source: Source, output: Path, options: Options, tokenizer: Tokenizer, embed: Embed, model: str
) -> FileProgress:
    """Embed a file of texts into the file `output`, which must not exist, and log how far it is.

    Raises CorpusError naming the line and the remedy. When it is cancelled, nothing more is computed and nothing stays.
    """
    _check_rows_identified(source, options)
    thread = ThreadPoolExecutor(1, "corpus")  # one, so that closing the files comes after everything that uses them
    try:
        in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
        reader = await in_thread(source.open)
        files = OutputFiles(output, model, options, rows_beside=False)
        progress = FileProgress()
        read = partial(next, _prepared_blocks(reader, tokenizer, options, source.skip), None)
        store = partial(_store, files, progress, options)
        try:
            await _embed_blocks(in_thread, read, embed, store, progress)
            await in_thread(files.finish)
        finally:
            await asyncio.gather(in_thread(files.close), in_thread(reader.close))
        progress.expected = progress.rows
        progress.log()
        progress.log_skipped(lambda number: reader.place(number).replace(reader.path, "file"))
        return progress
    except UnknownFormat:
        raise CorpusError("file: the end of its name does not say what it is; say so in file_format") from None
    except CorpusError as error:
        message = str(error).replace(str(source.path), "file").replace(str(output), "the answer's file")
        raise CorpusError(message) from None
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(
            f"the answer's file: cannot be written: {reason(error)}; make room on the server's disk"
        ) from error
    finally:
        thread.shutdown(wait=False)


def _prepared_blocks(
    reader: Reader, tokenizer: Tokenizer, options: Options, skip: bool
) -> Iterator[tuple[PreparedBlock, int]]:
    """Yield the file's blocks, each with how many rows the file seems to have. Raises CorpusError at a bad row."""
    read = 0
    try:
        for block in blocks(reader.rows(exact=True), LIMITS, reader.carried_fields, skip, reader.id_type):
            read += block.fit_rows
            yield prepare_block(tokenizer, options, block, skip), int(read / max(reader.fraction(), 1e-9))
    except UnfitRow as unfit:
        place, problem = reader.place(unfit.row.number), unfit.row.problem
        raise CorpusError(f"{place}: {problem}. Mend it, or skip such rows with on_error 'skip'") from None


async def _embed_blocks(
    in_thread: Callable[..., asyncio.Future[Any]],
    read: Callable[[], tuple[PreparedBlock, int] | None],
    embed: Embed,
    store: Callable[[PreparedBlock, int, np.ndarray | None], None],
    progress: FileProgress,
) -> None:
    """Compute each block while the next is read and prepared and the one before is written; log every LOG_EVERY_S."""
    logged = time.monotonic()
    reading, storing = in_thread(read), in_thread(lambda: None)
    try:
        while (item := await reading) is not None:
            reading = in_thread(read)
            vectors = await _compute(embed, item[0].prepared)
            await storing
            storing = in_thread(store, *item, vectors)
            if progress.rows and time.monotonic() - logged >= LOG_EVERY_S:
                logged = time.monotonic()
                progress.log()
        await storing
    finally:
        reading.cancel()
        await asyncio.gather(reading, storing, return_exceptions=True)


async def _compute(embed: Embed, prepared: Prepared) -> np.ndarray | None:
    """Return the vectors of a block's texts, float32 [vectors, 768], None if there are none to compute."""
    while prepared.passes:
        try:
            return (await embed(prepared.token_ids, prepared.ranges))[0]
        except Busy:
            await asyncio.sleep(BUSY_WAIT_S)
    return None


def _store(
    files: OutputFiles,
    progress: FileProgress,
    options: Options,
    prepared: PreparedBlock,
    expected: int,
    vectors: np.ndarray | None,
) -> None:
    """Write a computed block's rows and count them."""
    text_vectors = finish(options, prepared, vectors)
    unfit = files.write_block(prepared.block.rows, lambda _: text_vectors)
    progress.rows += prepared.block.rows.num_rows - len(unfit)
    progress.tokens += prepared.tokens
    progress.prompted = files.prompted
    progress.expected = expected
    progress.skipped += len(unfit)
    progress.first_skipped += unfit[: SKIPPED_LOGGED - len(progress.first_skipped)]
