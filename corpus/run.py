"""A whole run: blocks to the devices, shards as they come back, one file at the end."""

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from corpus.blocks import Block, BlockLimits, blocks_of
from corpus.inputs import Inputs
from corpus.output_files import OutputFiles, side_files
from corpus.pipeline import RunProgress
from corpus.rows import CorpusError, UnfitRow
from corpus.shards import ShardFolder
from corpus.sources import reason
from corpus.writers import check_carried
from texts.options import Options

Submit = Callable[[Block], "Future[RunProgress]"]

# Blocks under way for a device: one prepared, one computed, one written, and the next to begin.
BLOCKS_PER_DEVICE = 4


@dataclass(frozen=True, slots=True)
class CorpusJob:
    """What to embed, by which model, into what. `skip` goes on past rows that cannot be embedded."""

    inputs: Inputs
    output: Path
    model: str
    options: Options
    limits: BlockLimits
    skip: bool = False


def run(job: CorpusJob, shards: ShardFolder, submit: Submit, devices: int = 1) -> Generator[RunProgress]:
    """Do the job, and yield how far it is after each block and at the end; closing the iterator stops it.

    `shards` must be open. `submit` starts on a block, as `Pipeline.submit` does. Raises CorpusError in words when it
    cannot go on; everything stored stays, and the same job continues from there.
    """
    progress = RunProgress()
    check_carried(job.output, job.inputs.carried_fields)
    try:
        for block, (expected, is_known) in _stored_blocks(job, shards, submit, devices * BLOCKS_PER_DEVICE):
            progress = progress.plus(block)
            progress = progress._replace(expected=max(expected, progress.read), is_known=is_known)
            yield progress
        written = _write_output(job, shards, progress.blocks)
    except UnfitRow as unfit:
        remedy = "What was done is kept: mend it and run the same again, or skip such rows (on-error skip)"
        raise CorpusError(job.inputs.place(unfit.row), unfit.row.problem, remedy) from None
    except MemoryError:  # pyarrow's is an ArrowException, too
        raise
    except (OSError, pa.ArrowException) as error:
        remedy = f"what is done is kept in {shards.path}: make room and run the same again"
        raise CorpusError(str(job.output), f"cannot be written: {reason(error)}", remedy) from error
    shards.remove()
    yield progress._replace(expected=progress.read, is_known=True, **written)


def _stored_blocks(
    job: CorpusJob, shards: ShardFolder, submit: Submit, at_once: int
) -> Iterator[tuple[RunProgress, tuple[int, bool]]]:
    """Yield every stored block, also of an earlier run, with the input's rows and whether their number is known."""
    expected = (0, False)
    waiting: set[Future[RunProgress]] = set()
    try:
        for block, expected in blocks_of(job.inputs, job.limits, job.options.chunking, job.skip):
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


def _write_output(job: CorpusJob, shards: ShardFolder, block_count: int) -> dict[str, int]:
    """Write all rows with a vector, list the others in a file beside the output, and return RunProgress's counts."""
    id_type, count = shards.id_type(block_count), 0
    with OutputFiles(job.output, job.model, job.options, shards.path, side_files(job.output, job.skip)) as files:
        for index in range(block_count):
            rows = shards.rows(index)
            at = rows.schema.get_field_index("id")
            rows = rows.set_column(at, pa.field("id", id_type), rows["id"].cast(id_type))
            count += rows.num_rows
            for row in files.write_block(rows, shards.vectors):
                files.skip(row)
        files.finish()
        return {"rows": count - files.skipped, "skipped": files.skipped, "prompted": files.prompted}
