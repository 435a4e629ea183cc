"""A whole run: blocks to the devices, shards as they come back, one file at the end."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from corpus.assembly import Assembly
from corpus.blocks import Block, BlockLimits, blocks_of
from corpus.destination import Destination
from corpus.inputs import Inputs
from corpus.pipeline import RunProgress
from corpus.previous import Previous
from corpus.rows import CorpusError, UnfitRow
from corpus.shards import ShardFolder
from corpus.sources import RemoteError, reason
from corpus.writers import check_carried
from texts.options import Options

Submit = Callable[[Block], "Future[RunProgress]"]

# Blocks under way for a device: one prepared, one computed, one written, and the next to begin.
BLOCKS_PER_DEVICE = 4


@dataclass(frozen=True, slots=True)
class CorpusJob:
    """What to embed, by which model, into what. `skip` goes on past rows that cannot be embedded."""

    inputs: Inputs
    destination: Destination
    model: str
    options: Options
    limits: BlockLimits
    skip: bool = False
    previous: Previous | None = None
    """The output that is updated."""


def run(job: CorpusJob, shards: ShardFolder, submit: Submit, devices: int = 1) -> Generator[RunProgress]:
    """Do the job, and yield how far it is after each block and at the end; closing the iterator stops it.

    `shards` must be open. `submit` starts on a block, as `Pipeline.submit` does. Raises CorpusError in words when it
    cannot go on; everything stored stays, and the same job continues from there.
    """
    progress = RunProgress()
    check_carried(job.destination.product, job.inputs.carried_fields)
    try:
        with _in_words(job.destination, shards):
            for block, (expected, is_known) in _stored_blocks(job, shards, submit, devices * BLOCKS_PER_DEVICE):
                progress = progress.plus(block)
                progress = progress._replace(expected=max(expected, progress.read), is_known=is_known)
                yield progress
            assembly = Assembly(shards, progress.blocks, job.destination, job.previous)
            written = assembly.write(job.model, job.options)
    except UnfitRow as unfit:
        remedy = "What was done is kept: mend it and run the same again, or skip such rows (on-error skip)"
        raise CorpusError(job.inputs.place(unfit.row), unfit.row.problem, remedy) from None
    finish(job.destination, shards)
    yield progress._replace(expected=progress.read, is_known=True, **written)


def finish(destination: Destination, shards: ShardFolder) -> None:
    """Put the whole product in its place, if it is not there yet, and delete everything else of the run."""
    with _in_words(destination, shards):
        if not shards.is_done:
            destination.deliver()
            shards.set_done()
        destination.clear()
    shards.remove()


@contextmanager
def _in_words(destination: Destination, shards: ShardFolder) -> Iterator[None]:
    """Raise CorpusError for what cannot be written."""
    try:
        yield
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except (OSError, pa.ArrowException) as error:
        first = "" if isinstance(error, RemoteError) else "make room and "
        remedy = f"what is done is kept in {shards.path}: {first}run the same again"
        raise CorpusError(destination.target, f"cannot be written: {reason(error)}", remedy) from error


def _stored_blocks(
    job: CorpusJob, shards: ShardFolder, submit: Submit, at_once: int
) -> Iterator[tuple[RunProgress, tuple[int, bool]]]:
    """Yield every stored block, also of an earlier run, with the input's rows and whether their number is known."""
    expected, find = (0, False), job.previous.find if job.previous else None
    waiting: set[Future[RunProgress]] = set()
    try:
        for block, expected in blocks_of(job.inputs, job.limits, job.options.chunking, job.skip, find):
            if shards.has(block):
                yield RunProgress(1, block.fit_rows, resumed=block.fit_rows, read=block.rows.num_rows), expected
            else:
                waiting.add(submit(block))
                yield from ((stored, expected) for stored in _finished(waiting, at_once))
        yield from ((stored, expected) for stored in _finished(waiting, 1))
    except (ValueError, OSError):
        wait(waiting)  # the rows before a bad row are kept, and no writer is left when the run is started again
        raise
    finally:
        for future in waiting:
            future.cancel()


def _finished(waiting: "set[Future[RunProgress]]", limit: int) -> Iterator[RunProgress]:
    """Yield results until fewer than `limit` blocks are under way."""
    while len(waiting) >= limit:
        done, _ = wait(waiting, return_when=FIRST_COMPLETED)
        waiting -= done
        for future in done:
            yield future.result()
