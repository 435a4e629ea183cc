"""What the command asks for, checked before anything heavy is loaded or installed: options, data, folders, weights."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import safe_open

import weights
from fetching.files import hash_file
from lab.tuning.data import KINDS, LABELS, SCORES, Data, read
from lab.tuning.recipe import LABELS_DISTILL, SMALL_PARAMETERS, Recipe, TuningError
from lab.tuning.split import Parts, split

MOST_LOST = 2.0
BY_DEFAULT = {
    "learning_rate": f"2e-5; 2e-4 for fewer than {SMALL_PARAMETERS:,} parameters",
    "distill": f"{LABELS_DISTILL:g} for labels; 0 for others",
}
"""In words, the defaults that depend on what is trained."""
COLUMNS = tuple(dict.fromkeys(name for kind in KINDS for name in (*kind.columns, *kind.optional)))


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A tuning that can begin."""

    args: argparse.Namespace
    recipe: Recipe
    data: Data
    parts: Parts
    base: weights.Checkpoint


def arguments(description: str | None = None) -> argparse.ArgumentParser:
    """Return the command's options; each setting of the recipe has an option of its name."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.tuning", usage="%(prog)s --data FILE --out FOLDER [options]; --help has all options",
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add, home = parser.add_argument, os.path.expanduser
    add("--data", type=home, required=True, help="a .jsonl, .csv or .parquet file of rows to train on")
    add("--held-out", type=home, help="rows to measure by (default: a part of the data, split off by text)")
    add("--drop-shared", action="store_true", help="leave out rows of the data that share a text with --held-out")
    add(
        "--columns", nargs="+", default=[], metavar="NAME=COLUMN",
        help="the files' names of columns, where they differ from ours: text=utterance label=category",
    )  # fmt: skip
    add("--weights", default=os.environ.get("WEIGHTS"), help="the checkpoint to tune, named as in WEIGHTS")
    add("--out", type=lambda path: Path(home(path)), required=True, help="a new folder for the tuned checkpoint")
    add("--max-loss", type=float, default=MOST_LOST, help=f"points of 100 that a general task may lose ({MOST_LOST})")
    add("--check", action="store_true", help="check all of this, and train nothing")
    for field in dataclasses.fields(Recipe):
        words = f"{field.metadata['meaning']} (default {BY_DEFAULT.get(field.name, field.default)})"
        kind = float if field.default is None else type(field.default)
        add(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=words)
    return parser


@contextmanager
def working(out: Path) -> Iterator[Path]:
    """Lock and give the path of the working folder, OUT.work; the folder itself may be missing.

    Raises TuningError where another run works there, or the result exists already or could not be written.
    """
    if not out.name or out.name == ".." or str(out).startswith("~"):  # an unknown user's home
        raise TuningError(f"--out: {str(out)!r} is no name of a folder; give one, such as OUT=tuned")
    work = out.with_name(f"{out.name}.work")
    lock = FileLock(work.with_name(f"{work.name}.lock"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except OSError as error:
        if isinstance(error, Timeout) and os.path.exists(lock.lock_file):
            raise TuningError(f"{work}: another run is at work there; wait for it, or name another OUT") from None
        raise TuningError(f"{out}: cannot be written: {error}; name another folder with OUT") from error
    try:
        for path in (out, rejected_path(out)):
            if os.path.lexists(path):
                raise TuningError(f"{path}: it is there already; remove it, or name another folder with OUT")
        yield work
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def rejected_path(out: Path) -> Path:
    """Return where the result is saved if the scores do not improve."""
    return out.with_name(f"{out.name}.rejected")


def check(args: argparse.Namespace, work: Path) -> Asked:
    """Return what the options ask for. Raises TuningError, CorpusError or WeightsError: a sentence with the remedy."""
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)})
    if not 0 <= args.max_loss <= 100:
        raise TuningError(f"--max-loss: it is {args.max_loss}; give 0 to 100, points that a general task may lose")
    if args.drop_shared and not args.held_out:
        raise TuningError("--drop-shared: there is no HELD_OUT file that rows could share texts with; leave it out")
    names = names_of(args.columns)
    data = read(args.data, names)
    if data.kind is SCORES and recipe.distill:
        raise TuningError("--distill: it is for pairs and labels; leave it out for scores")
    held_out = read(args.held_out, names) if args.held_out else None
    parts = split(data, held_out, recipe.seed, args.drop_shared)
    base = weights.resolve(args.weights)
    asked = Asked(args, recipe.chosen(parameters_of(base.directory), data.kind is LABELS), data, parts, base)
    has_begun(asked, work)
    return asked


def names_of(given: list[str]) -> dict[str, str]:
    """Return the column of each NAME=COLUMN. Raises TuningError for another form, and for names given twice."""
    names: dict[str, str] = {}
    for each in given:
        name, _, column = each.partition("=")
        if name not in COLUMNS or not column:
            raise TuningError(
                f"--columns: {each!r} is not NAME=COLUMN, where NAME is one of {', '.join(COLUMNS)}; "
                "write them with blanks between, as in --columns text=utterance label=category"
            )
        if name in names or column in names.values():
            raise TuningError(f"--columns: {each!r} names what was named before; give each once")
        names[name] = column
    return names


def parameters_of(directory: Path) -> int:
    """Return the number of a checkpoint's parameters, by the files' headers."""
    count = 0
    for path in directory.rglob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def identity(asked: Asked) -> dict[str, Any]:
    """Return what tells this training from others: settings, weights and data."""
    args = asked.args
    same = asked.recipe.as_dict() | {
        "weights": asked.base.sha256,
        "data": hash_file(Path(args.data)),
        "held-out": hash_file(Path(args.held_out)) if args.held_out else None,
        "columns": sorted(args.columns),
        "drop-shared": args.drop_shared,
    }
    del same["mini_batch"]  # after a run that was out of memory, it goes on with a smaller one
    return same


def has_begun(asked: Asked, work: Path) -> bool:
    """Return whether the folder holds this training, unfinished. Raises TuningError where it holds anything else."""
    if not work.exists():
        return False
    before = None
    with suppress(OSError, ValueError):
        before = json.loads((work / "asked.json").read_text(encoding="utf-8"))
    if not isinstance(before, dict):
        if not work.is_dir() or {path.name for path in work.iterdir()} - {"asked.unfinished"}:
            raise TuningError(f"{work}: it is no folder of this command's; remove it, or name another OUT")
        return False
    now = identity(asked)
    if changed := sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name)):
        raise TuningError(
            f"{work}: it holds an unfinished training that differs in {', '.join(changed)}; give the same "
            "command to go on, or remove the folder to begin anew"
        )
    return True
