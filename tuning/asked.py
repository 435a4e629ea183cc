"""What the command asks for, checked before anything heavy is loaded or installed: options, data, folders, weights."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import safe_open

import weights
from fetching.files import hash_file
from tuning.data import KINDS, LABELS, SCORES, Data, read
from tuning.recipe import LABELS_DISTILL, SMALL_PARAMETERS, Recipe, TuningError
from tuning.split import Parts, split

MOST_LOST = 2.0
BY_DEFAULT = {
    "learning_rate": f"2e-5; 2e-4 for fewer than {SMALL_PARAMETERS:,} parameters",
    "distill": f"{LABELS_DISTILL:g} for labels; 0 for others",
}
"""In words, the settings that are chosen when it is known what is trained."""
COLUMNS = tuple(dict.fromkeys(name for kind in KINDS for name in (*kind.columns, *kind.optional)))


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """A tuning that can begin."""

    args: argparse.Namespace
    recipe: Recipe
    data: Data
    parts: Parts
    base: weights.Checkpoint

    @property
    def rejected(self) -> Path:
        """The folder of a checkpoint that is not better."""
        return rejected_path(self.args.out)


def arguments(description: str | None = None) -> argparse.ArgumentParser:
    """Return the command's options; those of the recipe have its names."""
    parser = argparse.ArgumentParser(
        prog="python -m tuning", usage="%(prog)s --data FILE --out FOLDER [options]; --help has all options",
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    add = parser.add_argument
    add("--data", type=os.path.expanduser, required=True, help="a .jsonl, .csv or .parquet file of rows to train on")
    add(
        "--held-out",
        type=os.path.expanduser,
        help="rows to measure by (default: a part of the data, split off by text)",
    )
    add("--drop-shared", action="store_true", help="leave out rows of the data that share a text with --held-out")
    add(
        "--columns", nargs="+", default=[], metavar="NAME=COLUMN",
        help="what columns are called in the files, where not as here: text=utterance label=category",
    )  # fmt: skip
    add("--weights", default=os.environ.get("WEIGHTS"), help="as WEIGHTS would name it")
    add(
        "--out",
        type=folder,
        required=True,
        help="the folder of the tuned checkpoint, which is not there yet",
    )
    add("--max-loss", type=float, default=MOST_LOST, help=f"points of 100 that a general task may lose ({MOST_LOST})")
    add("--check", action="store_true", help="only say whether all of this can be used")
    for field in dataclasses.fields(Recipe):
        shown = BY_DEFAULT.get(field.name, field.default)
        kind = float if field.default is None else type(field.default)
        add(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, help=f"(default {shown})")
    return parser


def folder(path: str) -> Path:
    """Return the path, from a home folder where it begins with ~: `make` gives OUT=~/tuned as it is."""
    return Path(os.path.expanduser(path))


@contextmanager
def working(out: Path) -> Iterator[Path]:
    """Hold the folder of what is done so far, OUT.work, against another run; it need not be there.

    Raises TuningError where another run works there, or the result is there already or could not be written.
    """
    if not out.name or out.name == ".." or str(out).startswith("~"):  # of nobody's home
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
    """Return the folder of a checkpoint that is not better."""
    return out.with_name(f"{out.name}.rejected")


def check(args: argparse.Namespace, work: Path) -> Asked:
    """Return what is to be done. Raises TuningError, CorpusError or WeightsError, each one sentence with the remedy."""
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
    check_work(asked, work)
    return asked


def names_of(given: list[str]) -> dict[str, str]:
    """Return for each NAME=COLUMN the column. Raises TuningError for what is not so, or not once."""
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
    """Return how many numbers the weights of a checkpoint have, by the files' headers."""
    count = 0
    for path in directory.rglob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            count += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return count


def identity(asked: Asked) -> dict[str, Any]:
    """Return what makes a training this one: settings, weights and data."""
    args = asked.args
    same = asked.recipe.as_dict() | {"weights": asked.base.sha256, "data": hash_file(Path(args.data))}
    del same["mini_batch"]  # which may have to be smaller when it goes on
    same |= {"held-out": hash_file(Path(args.held_out))} if args.held_out else {}
    same |= {"columns": sorted(args.columns)} if args.columns else {}
    return same | ({"drop-shared": True} if args.drop_shared else {})


def check_work(asked: Asked, work: Path) -> bool:
    """Return whether there is something to go on with. Raises TuningError where it is of another training."""
    kept = work / "asked.json"
    if not work.exists():
        return False
    before = read_json(kept) if kept.is_file() else None
    if before is None:
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


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a file, None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
