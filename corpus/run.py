"""A whole run: windows to whoever computes them, shards as they come back, one file at the end."""

from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, as_completed, wait
from dataclasses import dataclass, replace
from pathlib import Path

from corpus.blocks import Limits, Window, windows
from corpus.pipeline import Done, Refused
from corpus.readers import Reader
from corpus.rows import BadRow, CorpusError, Row
from corpus.shards import Parts
from corpus.writers import output_format, write_output
from texts.options import Options

Submit = Callable[[Window], "Future[Done]"]

# Windows under way for one device: one tokenized, one computed, one written, and one ready to begin with.
WINDOWS_PER_DEVICE = 4


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is: `rows` are done, of which `resumed` were found done; `computed` texts had `tokens` tokens.

    `expected` is how many rows the input seems to have; `skipped` is known at the end.
    """

    windows: int = 0
    rows: int = 0
    resumed: int = 0
    computed: int = 0
    tokens: int = 0
    expected: int = 0
    skipped: int = 0
    finished: bool = False

    def after(self, done: Done, expected: int, resumed: bool = False) -> "Progress":
        """Return where the run is with one more window."""
        return Progress(
            windows=self.windows + 1,
            rows=self.rows + done.rows,
            resumed=self.resumed + (done.rows if resumed else 0),
            computed=self.computed + done.computed,
            tokens=self.tokens + done.tokens,
            expected=expected,
        )


@dataclass(frozen=True, slots=True)
class Job:
    """What to embed, into what. `parts` must be open; `skip` goes on past rows that cannot be embedded."""

    reader: Reader
    output: Path
    form: str
    settings: Options
    limits: Limits
    parts: Parts
    skip: bool


class Stopped(CorpusError):
    """A run that ended at a row that has no vector."""

    def __init__(self, place: str, row: BadRow) -> None:
        self.row = row
        super().__init__(
            f"{place}: {row.problem}. What was done is kept: mend it and run the same again, or skip such rows "
            "(on-error skip)"
        )


def parts_of(output: Path) -> Path:
    """Return the folder in which a run for this output keeps what is done."""
    return output.with_name(f"{output.name}.parts")


def check_output(output: Path, form: str | None = None) -> str:
    """Return the output's format. Raises CorpusError when the file is there already, or cannot be there."""
    found = output_format(output, form)
    if not output.parent.is_dir():
        raise CorpusError(f"{output}: there is no folder {output.parent}; make it first")
    if output.exists():
        raise CorpusError(f"{output}: the file is there already; delete it, or name another")
    return found


def run(job: Job, submit: Submit, devices: int, model: Mapping[str, str]) -> Generator[Progress]:
    """Do the job, and yield how far it is after each window and at the end; closing the iterator stops it.

    `submit` starts on a window and gives a future, as `Pipeline.submit` does; `model` joins the output's metadata.
    Raises CorpusError in words when it cannot go on; whatever is stored stays, and the same job goes on from there.
    """
    progress = Progress()
    try:
        for progress in _windows(job, submit, devices * WINDOWS_PER_DEVICE):
            yield progress
        metadata = {**model, **job.settings.described()}
        with_ranges = job.settings.chunking is not None
        skipped = write_output(job.parts, progress.windows, job.output, job.form, metadata, with_ranges)
    except OSError as error:
        raise CorpusError(
            f"{job.parts.folder}: cannot be written: {error.strerror or error}; what is done is kept there: make room "
            "and run the same again"
        ) from error
    job.parts.remove()
    yield replace(progress, skipped=skipped, expected=progress.rows, finished=True)


def _windows(job: Job, submit: Submit, at_once: int) -> Iterator[Progress]:
    """Yield after every stored window, those that were stored before included."""
    progress, read, expected = Progress(), 0, 0
    waiting: set[Future[Done]] = set()
    try:
        for window in windows(_rows(job), job.limits):
            read += len(window.numbers)
            expected = int(read / max(job.reader.fraction(), 1e-9))
            if job.parts.has(window):
                progress = progress.after(Done(window.index, len(window.numbers), 0, 0), expected, resumed=True)
                yield progress
            else:
                waiting.add(submit(window))
            if len(waiting) >= at_once:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    progress = progress.after(_result(job, future), expected)
                    yield progress
        for future in as_completed(waiting):
            progress = progress.after(_result(job, future), expected)
            yield progress
    except (CorpusError, OSError):
        wait(waiting)  # the rows before a bad one are kept, and nobody writes any more when the run is begun again
        raise
    finally:
        for future in waiting:
            future.cancel()


def _rows(job: Job) -> Iterator[Row | BadRow]:
    """Yield the rows. Raises CorpusError at one that cannot be embedded, unless it is to be skipped."""
    for row in job.reader.rows():
        if isinstance(row, BadRow) and not job.skip:
            raise _stopped(job, row)
        yield row


def _result(job: Job, future: "Future[Done]") -> Done:
    try:
        return future.result()
    except Refused as refused:
        raise _stopped(job, BadRow(refused.number, refused.problem)) from None


def _stopped(job: Job, row: BadRow) -> Stopped:
    return Stopped(job.reader.place(row.number), row)
