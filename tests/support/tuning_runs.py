"""Trainings in processes forked from one that has imported all that they need: ten seconds of a core."""

import multiprocessing
import os
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lab.tuning.run"])
EXAMPLES = 96


@dataclass(frozen=True)
class Run:
    """A process, and the end of the pipe into which it writes stderr."""

    process: ForkServerProcess
    pipe: Connection

    def end(self) -> tuple[int | None, str]:
        """Wait, and return the exit status and what the process said."""
        with os.fdopen(os.dup(self.pipe.fileno()), encoding="utf-8") as file:
            said = file.read()
        self.pipe.close()
        self.process.join()
        return self.process.exitcode, said


def start_command(arguments: Sequence[str], most_bytes: int | None = None, general: Sequence[str] | None = None) -> Run:
    """Start `python -m lab.tuning`. No file may have more than `most_bytes`; `general` replaces the general tasks."""
    return _start(most_bytes, _command, list(arguments), general)


def start_training(data: Path, work: Path, recipe: dict[str, Any], most_bytes: int | None = None) -> Run:
    """Start a training alone, on the first EXAMPLES rows of a file."""
    return _start(most_bytes, _training, data, work, recipe)


def _start(most_bytes: int | None, do: Callable[..., None], *given: Any) -> Run:
    ours, theirs = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=_run, args=(theirs, most_bytes, do, *given))
    process.start()
    theirs.close()
    return Run(process, ours)


def _run(pipe: Connection, most_bytes: int | None, do: Callable[..., None], *given: Any) -> None:
    os.dup2(pipe.fileno(), sys.stderr.fileno())
    pipe.close()
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    do(*given)


def _command(arguments: list[str], general: Sequence[str] | None) -> None:
    import lab.tuning.measure
    from lab.tuning.__main__ import main

    if general is not None:
        lab.tuning.measure.GENERAL = tuple(general)  # type: ignore[assignment]
    sys.argv = ["tuning", *arguments]
    try:
        main()
    except SystemExit as end:  # in the way of an interpreter that ends, where nothing is said after the last words
        words = end.code if isinstance(end.code, str) else ""
        print(words, end="\n" if words else "", file=sys.stderr, flush=True)
        os._exit(1 if words else int(end.code or 0))


def _training(data: Path, work: Path, recipe: dict[str, Any]) -> None:
    from lab.tuning.data import read
    from lab.tuning.recipe import Recipe
    from lab.tuning.train import train
    from weights import SMALL

    rows = read(str(data))
    work.mkdir(exist_ok=True)
    train(rows.kind, rows.examples[:EXAMPLES], SMALL, Recipe(**recipe), work)
