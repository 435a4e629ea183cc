"""Fine-tune a checkpoint on your own data, and measure whether that helped.

    python -m tuning --data pairs.jsonl --out tuned                  # query, positive; text, label; or a, b, score
    python -m tuning --data pairs.jsonl --out tuned --epochs 3 --learning-rate 1e-4

Writes a checkpoint that the container serves. One that is not better on held-out rows, or has forgotten what it could,
becomes OUT.rejected, with the reasons in its card, and the exit status is 3. What is done so far is in OUT.work, so the
same command goes on after it was killed. docs/tuning.md says what each setting does.
"""

import argparse
import dataclasses
import json
import logging
import os
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import datasets
import torch
from safetensors import SafetensorError
from sklearn.exceptions import UndefinedMetricWarning

import weights
from benchmarks.report import machine, versions
from fetching.files import hash_file
from tuning.data import SCORES, Data, path_name, read
from tuning.measure import FORMS, choose, compare, in_words, score, tasks_of, verdict
from tuning.page import draw
from tuning.recipe import Recipe, TuningError
from tuning.split import Parts, shared_with, split
from tuning.train import train, write_json
from tuning.write import finish, place, write_weights

logger = logging.getLogger("tuning")

MOST_LOST = 2.0
REJECTED = 3


def main() -> None:
    """Exit with 0 for a better checkpoint, 3 for a rejected one, 1 where nothing could be trained."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    datasets.disable_progress_bars()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the trainer would share each batch out among all GPUs
    warnings.simplefilter("ignore", UndefinedMetricWarning)  # a label may have no held-out text
    try:
        sys.exit(tune(arguments().parse_args()))
    except torch.OutOfMemoryError as error:
        sys.exit(f"{error}\nGive a smaller --mini-batch, which changes nothing but rounding")
    except (SafetensorError, OSError) as error:
        sys.exit(f"{error}: make room on the disk, or mend what is wrong with it, and the same command goes on")
    except (RuntimeError, ValueError) as error:
        sys.exit(str(error))


def arguments() -> argparse.ArgumentParser:
    """Return the command's options; those of the recipe have its names."""
    parser = argparse.ArgumentParser(
        prog="python -m tuning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="a .jsonl, .csv or .parquet file of rows to train on")
    parser.add_argument("--held-out", help="rows to measure by (default: a part of the data, split off by text)")
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS"), help="as WEIGHTS would name it")
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder of the tuned checkpoint, which is not there yet"
    )
    parser.add_argument(
        "--max-loss", type=float, default=MOST_LOST, help=f"points of 100 that a general task may lose ({MOST_LOST})"
    )
    for field in dataclasses.fields(Recipe):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=type(field.default), default=field.default, help=f"(default {field.default})")
    return parser


def tune(args: argparse.Namespace) -> int:
    """Tune as the options say and return the exit status. Raises TuningError, or what reading and loading raise."""
    recipe = Recipe(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Recipe)})
    rejected = args.out.with_name(f"{args.out.name}.rejected")
    for path in (args.out, rejected):
        if path.exists():
            raise TuningError(f"{path}: it is there already; remove it, or name another folder with OUT")
    data = read(args.data)
    if data.kind is SCORES and recipe.distill:
        raise TuningError("--distill: it is for pairs and labels; leave it out for scores")
    parts = split(data, read(args.held_out) if args.held_out else None, recipe.seed)
    base = weights.resolve(args.weights)
    work = open_work(args, recipe, base.sha256)
    logger.info("%s", described(data, parts))
    figures = results(args, data, parts, base, recipe, work)
    staged = work / "staged"
    write_weights(base.directory, work / f"{figures['chosen']}.safetensors", staged)
    finish(staged, figures, draw(figures, work))
    out = rejected if figures["reasons"] else args.out
    place(staged, out)
    shutil.rmtree(work)
    report(figures, out)
    return REJECTED if figures["reasons"] else 0


def open_work(args: argparse.Namespace, recipe: Recipe, sha256: str) -> Path:
    """Return the folder of what is done so far. Raises TuningError where it is of another training."""
    work: Path = args.out.with_name(f"{args.out.name}.work")
    asked = recipe.as_dict() | {"weights": sha256, "data": hash_file(Path(args.data))}
    del asked["mini_batch"]  # which may have to be smaller when it goes on
    asked |= {"held-out": hash_file(Path(args.held_out))} if args.held_out else {}
    kept = work / "asked.json"
    if work.is_dir() and not kept.is_file() and {path.name for path in work.iterdir()} - {"asked.unfinished"}:
        raise TuningError(f"{work}: it is no folder of this command's; remove it, or name another OUT")
    if kept.is_file():
        before = json.loads(kept.read_text(encoding="utf-8"))
        if changed := sorted(name for name in asked.keys() | before.keys() if asked.get(name) != before.get(name)):
            raise TuningError(
                f"{work}: it holds an unfinished training that differs in {', '.join(changed)}; give the same "
                "command to go on, or remove the folder to begin anew"
            )
        logger.info("Going on with what is in %s", work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(kept, asked)
    return work


def described(data: Data, parts: Parts) -> str:
    """Return in sentences what is trained on."""
    counts = [len(data.examples), len(parts.train), len(parts.choosing), len(parts.held_out)]
    rows, train, choosing, held_out = (f"{count:,}" for count in counts)
    parted = f"{train} to train on, {choosing} to choose by, {held_out} held out"
    return "\n".join([f"{path_name(data.path)}: {rows} {data.kind.name}, {parted}.", *parts.notes])


def results(
    args: argparse.Namespace, data: Data, parts: Parts, base: weights.Checkpoint, recipe: Recipe, work: Path
) -> dict[str, Any]:
    """Train, choose among the weights, measure before and after, and return all figures."""
    files, history = train(data.kind, parts.train, base.directory, recipe, work)
    candidates = {name: work / "candidates" / f"{args.out.name}-{name}" for name in files}
    for name, directory in candidates.items():
        write_weights(base.directory, files[name], directory)
    chosen, scores = choose(candidates, data.kind, parts, work)
    tasks = tasks_of(data.kind, parts, work)
    every = [*tasks.held_out, *tasks.general]
    before, after = (
        score(directory, every, tasks.prompts, work, FORMS) for directory in (base.directory, candidates[chosen])
    )
    held_out, general = compare(before, after, tasks.held_out), compare(before, after, tasks.general)
    return {
        "name": args.out.name,
        "base": base.name,
        "command": command(args),
        "data": {
            "file": path_name(data.path), "sha256": hash_file(Path(data.path)), "kind": data.kind.name,
            "rows": len(data.examples), "train": len(parts.train), "choosing": len(parts.choosing),
            "held-out": len(parts.held_out),
        },
        "notes": [*parts.notes, *overlaps(parts, tasks.general)],
        "recipe": recipe.as_dict(),
        **history,
        "chosen": chosen,
        "choosing": scores,
        "held_out": held_out,
        "general": general,
        "most_lost": args.max_loss,
        "reasons": verdict(data.kind, held_out, general, args.max_loss),
        "machine": machine(),
        "versions": versions(),
    }  # fmt: skip


def overlaps(parts: Parts, tasks: list[Any]) -> list[str]:
    """Return in sentences which general tasks have texts that were trained on, so that they do not show forgetting."""
    notes = []
    for task in tasks:
        task.load_data()
        found = shared_with(parts.train, texts_in(task.dataset))
        task.unload_data()
        if found:
            notes.append(f"{found:,} texts of the general task {task.metadata.name} are among the training rows.")
    return notes


def texts_in(content: Any) -> list[str]:
    """Return all strings in a data set's columns, however they are nested by subset and split."""
    if isinstance(content, dict):
        return [text for each in content.values() for text in texts_in(each)]
    if isinstance(content, datasets.Dataset):
        return [text for row in content for text in row.values() if isinstance(text, str)]
    return []


def command(args: argparse.Namespace) -> str:
    """Return the command in words of `make`, without what only says where things lie."""
    usual = arguments()
    options = [
        f"--{field.name.replace('_', '-')} {getattr(args, field.name)}"
        for field in dataclasses.fields(Recipe)
        if getattr(args, field.name) != usual.get_default(field.name)
    ]
    options += [f"--max-loss {args.max_loss}"] if args.max_loss != MOST_LOST else []
    given = [f"DATA={path_name(args.data)}", f"OUT={args.out.name}"]
    given += [f"HELD_OUT={path_name(args.held_out)}"] if args.held_out else []
    given += [f"WEIGHTS={args.weights}"] if args.weights and args.weights != "small" else []
    given += [f"OPTIONS={shlex.quote(' '.join(options))}"] if options else []
    return " ".join(["make tune", *given])


def report(figures: dict[str, Any], out: Path) -> None:
    """Say what came of it."""
    for row in (*figures["held_out"], *figures["general"]):
        logger.info("%s, %d dimensions: %s", row["task"], row["dimensions"], in_words(row))
    for note in figures["notes"]:
        logger.info("%s", note)
    if figures["reasons"]:
        logger.info("Rejected:\n%s", "\n".join(figures["reasons"]))
    logger.info("%s", out)


if __name__ == "__main__":
    main()
