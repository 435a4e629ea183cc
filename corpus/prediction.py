"""A corpus within a prediction: its blocks go through the queue that all requests share.

Only a few files are worked on at once, as each takes memory; the others wait in the order they came. The last place is
for small files, so that they do not wait for large files to end.
"""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from batching.errors import Busy
from batching.request import Cost
from corpus.asked_file import InputFile, answer_bytes, places_set
from corpus.blocks import BlockLimits, blocks_of
from corpus.compute import PreparedBlock, finish, prepare_block
from corpus.inputs import Inputs
from corpus.limits import MB
from corpus.output_files import OutputFiles
from corpus.readers import UnknownFormat
from corpus.rows import BadRow, CorpusError, UnfitRow
from corpus.sources import reason
from engine.contract import Ranges, TokenIds
from engine.tokenizer import Tokenizer
from texts.options import Options
from texts.prepare import Prepared

logger = logging.getLogger(__name__)

# Small, so that other requests come in between and a cancelled prediction ends soon. The batcher's cache recognises
# duplicates across blocks.
LIMITS = BlockLimits(rows=2_048, chars=1 << 20, remembered=0)
LOG_EVERY_S = 5.0
SKIPPED_LOGGED = 100
# A file with more rows without a vector than with one is given up after this many.
SKIPPED_MOST = 1_000_000
# How long a corpus waits when the queue is full: it has time.
BUSY_WAIT_S = 0.2
SMALL_FILE_BYTES = 4 * MB

EmbedAsync = Callable[[Sequence[TokenIds], Ranges | None], Awaitable[tuple[np.ndarray, Cost]]]


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

    def log_end(self, place: Callable[[BadRow], str]) -> None:
        """Log that all rows are done, and which have no vector."""
        self.expected = self.rows
        self.log()
        for row in self.first_skipped:
            logger.warning("%s: %s; skipped", place(row), row.problem)
        if self.skipped > SKIPPED_LOGGED:
            logger.warning("and %d more rows were skipped", self.skipped - SKIPPED_LOGGED)


def _check_rows_identified(file: InputFile, options: Options) -> None:
    """Raise ValueError if a file of nothing but vectors would not tell which rows they belong to."""
    reasons = {"chunk": options.chunking, "on_error 'skip'": file.skip, "id_column": file.columns.id}
    reason = next((name for name, given in reasons.items() if given), None)
    if file.output_format == "npy" and reason:
        raise ValueError(f"output_file: 'npy' has no ids to tell rows by, with {reason}; use 'parquet' or 'jsonl'")


@dataclass
class _Places:
    """The places of an event loop."""

    all: asyncio.Semaphore
    large: asyncio.Semaphore
    waiting: int = 0


_places: WeakKeyDictionary[asyncio.AbstractEventLoop, _Places] = WeakKeyDictionary()


@asynccontextmanager
async def turn(size: int) -> AsyncIterator[None]:
    """Wait for the turn of a file of `size` bytes, which lasts for the block. Raises Busy if too many files wait."""
    loop, (at_once, most) = asyncio.get_running_loop(), places_set()
    if loop not in _places:
        _places[loop] = _Places(asyncio.Semaphore(at_once), asyncio.Semaphore(max(1, at_once - 1)))
    here = _places[loop]
    if here.waiting >= most:
        raise Busy(
            f"busy: {most} files are waiting already; send it again a moment later, or set FILES_WAITING to more"
        )
    async with AsyncExitStack() as stack:
        here.waiting += 1
        try:
            if size > SMALL_FILE_BYTES:
                await stack.enter_async_context(here.large)
            await stack.enter_async_context(here.all)
        finally:
            here.waiting -= 1
        yield


async def embed_file(
    file: InputFile, output: Path, options: Options, tokenizer: Tokenizer, embed: EmbedAsync, model: str
) -> FileProgress:
    """Embed a file of texts into the file `output`, which must not exist, and log how far it is.

    Raises CorpusError naming the line and the remedy. When cancelled, it computes nothing more and leaves nothing.
    """
    _check_rows_identified(file, options)
    async with turn(os.stat(file.path).st_size):
        try:
            return await _embed_file(file, output, options, tokenizer, embed, model)
        except UnknownFormat:
            problem = "the end of its name does not say what it is"
            raise CorpusError("file", problem, "say so in file_format") from None
        except CorpusError as error:
            place = "the answer's file" if error.place == str(output) else error.place
            raise CorpusError(place, error.problem, error.remedy) from None
        except MemoryError:  # pyarrow's is an ArrowException, too
            raise
        except (OSError, pa.ArrowException) as error:
            why = type(error).__name__ if isinstance(error, pa.ArrowException) else reason(error)
            remedy = "make room on the server's disk"
            raise CorpusError("the answer's file", f"cannot be written: {why}", remedy) from None


async def _embed_file(
    file: InputFile, output: Path, options: Options, tokenizer: Tokenizer, embed: EmbedAsync, model: str
) -> FileProgress:
    thread = ThreadPoolExecutor(1, "corpus")  # one thread, so the files are closed after everything that uses them
    in_thread = partial(asyncio.get_running_loop().run_in_executor, thread)
    opened = ExitStack()
    inputs = None
    try:
        inputs = await in_thread(lambda: opened.enter_context(closing(file.open())))
        files = opened.enter_context(OutputFiles(output, model, options))
        progress = FileProgress()
        read = partial(next, _prepared_blocks(inputs, tokenizer, options, file.skip), None)
        store = partial(_store, files, answer_bytes(), progress, options)
        await _embed_blocks(in_thread, read, embed, store, progress, inputs.stop)
        await in_thread(files.finish)
    finally:
        closed = in_thread(opened.close)  # also what is opened only after the prediction was cancelled
        thread.shutdown(wait=False)
        if inputs is not None:
            await closed
    progress.log_end(inputs.place)
    return progress


def _prepared_blocks(
    inputs: Inputs, tokenizer: Tokenizer, options: Options, skip: bool
) -> Iterator[tuple[PreparedBlock, int]]:
    """Yield the file's blocks, each with an estimate of the file's rows. Raises CorpusError at a bad row."""
    try:
        for block, (expected, _) in blocks_of(inputs, LIMITS, options.chunking, skip):
            yield prepare_block(tokenizer, options, block, skip), expected
    except UnfitRow as unfit:
        remedy = "Mend it, or skip such rows with on_error 'skip'"
        raise CorpusError(inputs.place(unfit.row), unfit.row.problem, remedy) from None


async def _embed_blocks(
    in_thread: Callable[..., asyncio.Future[Any]],
    read: Callable[[], tuple[PreparedBlock, int] | None],
    embed: EmbedAsync,
    store: Callable[[PreparedBlock, int, np.ndarray | None], None],
    progress: FileProgress,
    stop: Callable[[], None],
) -> None:
    """Compute each block while the next is read and prepared and the one before is written; log every LOG_EVERY_S.

    `stop` is called at the end, good or bad, and lets `read` end soon.
    """
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
        stop()
        reading.cancel()
        await asyncio.gather(reading, storing, return_exceptions=True)


async def _compute(embed: EmbedAsync, prepared: Prepared) -> np.ndarray | None:
    """Return the vectors of a block's texts, float32 [vectors, 768], or None if there are none to compute."""
    while prepared.passes:
        try:
            return (await embed(prepared.token_ids, prepared.ranges))[0]
        except Busy:
            await asyncio.sleep(BUSY_WAIT_S)
    return None


def _store(
    files: OutputFiles,
    most_bytes: int,
    progress: FileProgress,
    options: Options,
    prepared: PreparedBlock,
    expected: int,
    vectors: np.ndarray | None,
) -> None:
    """Write a computed block's rows and count them. Raises CorpusError if the answer grows beyond its limit."""
    text_vectors = finish(options, prepared, vectors)
    unfit = files.write_block(prepared.block.rows, lambda _: text_vectors)
    if files.written_bytes() > most_bytes:
        remedy = "send fewer rows, ask for fewer dimensions or another precision, or set FILE_ANSWER_MB to more"
        raise CorpusError("the answer's file", f"it has more than {most_bytes // MB:,} MB", remedy)
    progress.rows += prepared.block.rows.num_rows - len(unfit)
    progress.tokens += prepared.tokens
    progress.prompted = files.prompted
    progress.expected = expected
    progress.skipped += len(unfit)
    if progress.skipped > max(progress.rows, SKIPPED_MOST):
        raise CorpusError("file", f"{progress.skipped:,} rows have no vector, more than have one", "mend the file")
    progress.first_skipped += unfit[: SKIPPED_LOGGED - len(progress.first_skipped)]
