"""From rows to a checkpoint in its place: train, choose, measure before and after, and write."""

import logging
import os
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import datasets
from sklearn.exceptions import UndefinedMetricWarning
from transformers.utils.logging import disable_progress_bar

from fetching.files import hash_file
from lab.report import machine, versions
from lab.tuning.asked import Asked, arguments, has_begun, identity, rejected_path
from lab.tuning.columns import write_json
from lab.tuning.measure import FORMS, choose, compare, general_tasks, in_words, part_tasks, score, verdict
from lab.tuning.split import Parts, normalised, texts_of
from lab.tuning.train import train
from lab.tuning.write import finish, place, write_weights

logger = logging.getLogger("tuning")


def tune(asked: Asked, work: Path) -> bool:
    """Tune and return whether the checkpoint is rejected; progress is kept in `work`.

    Raises TuningError, and what loading and writing raise.
    """
    datasets.disable_progress_bars()
    disable_progress_bar()
    warnings.simplefilter("ignore", UndefinedMetricWarning)  # a label may have no held-out text
    if has_begun(asked, work):
        logger.info("Going on with what is in %s", work)
    work.mkdir(exist_ok=True)
    write_json(work / "asked.json", identity(asked))
    logger.info("%s", described(asked))
    figures, tuned = results(asked, work)
    finish(tuned, figures)
    out = rejected_path(asked.args.out) if figures["reasons"] else asked.args.out
    place(tuned, out)
    shutil.rmtree(work)
    for row in (*figures["held_out"], *figures["general"]):
        logger.info("%s, %d dimensions: %s", row["task"], row["dimensions"], in_words(row))
    rejected = ["Rejected:", *figures["reasons"]] if figures["reasons"] else []
    logger.info("%s", "\n".join([*figures["notes"], *rejected, str(out)]))
    return bool(rejected)


def described(asked: Asked) -> str:
    """Return in sentences what is trained on, and how."""
    data, parts, recipe = asked.data, asked.parts, asked.recipe
    counts = f"{len(parts.train):,} to train on, {len(parts.choosing):,} to choose by, {len(parts.held_out):,} held out"
    rows = f"{os.path.basename(data.path)}: {len(data.examples):,} {data.kind.name}, {counts}."
    chosen = f"Learning rate {recipe.learning_rate:g}, distillation {recipe.distill:g}."
    return "\n".join([rows, chosen, *parts.notes])


def results(asked: Asked, work: Path) -> tuple[dict[str, Any], Path]:
    """Train, choose among the weights, measure before and after; return all figures, and the chosen directory."""
    args, data, parts, base = asked.args, asked.data, asked.parts, asked.base
    files, history = train(data.kind, parts.train, base.directory, asked.recipe, work)
    candidates = {name: work / "candidates" / f"{args.out.name}-{name}" for name in files}
    for name, directory in candidates.items():
        write_weights(base.directory, files[name], directory)
    chosen, scores = choose(candidates, data.kind, parts, work)
    tasks, prompts = part_tasks(data.kind, "held-out", parts.held_out, parts.train)
    general = general_tasks()
    before, after = (
        score(directory, [*tasks, *general], prompts, work, FORMS) for directory in (base.directory, candidates[chosen])
    )
    held_out_rows, general_rows = compare(before, after, tasks), compare(before, after, general)
    figures = {
        "name": args.out.name,
        "base": base.name,
        "command": command(args),
        "data": {
            "file": os.path.basename(data.path), "sha256": hash_file(Path(data.path)), "kind": data.kind.name,
            "rows": len(data.examples), "train": len(parts.train), "choosing": len(parts.choosing),
            "held-out": len(parts.held_out),
        },
        "notes": [*parts.notes, *history.pop("notes"), *overlaps(parts, general)],
        "recipe": asked.recipe.as_dict(),
        **history,
        "chosen": chosen,
        "choosing": scores,
        "held_out": held_out_rows,
        "general": general_rows,
        "most_lost": args.max_loss,
        "reasons": verdict(data.kind, held_out_rows, general_rows, args.max_loss),
        "machine": machine(),
        "versions": versions(),
    }  # fmt: skip
    return figures, candidates[chosen]


def overlaps(parts: Parts, tasks: list[Any]) -> list[str]:
    """Return in sentences which general tasks have texts that were trained on, and so do not show forgetting."""
    notes, trained = [], texts_of(parts.train)
    for task in tasks:
        task.load_data()
        if found := sum(normalised(text) in trained for text in texts_in(task.dataset)):
            notes.append(f"{found:,} texts of the general task {task.metadata.name} are among the training rows.")
        task.unload_data()
    return notes


def texts_in(content: Any) -> list[str]:
    """Return all strings in a data set's columns, however they are nested by subset and split."""
    if isinstance(content, dict):
        return [text for each in content.values() for text in texts_in(each)]
    if isinstance(content, datasets.Dataset):
        return [text for row in content for text in row.values() if isinstance(text, str)]
    return []


def command(args: Any) -> str:
    """Return the command as `make` takes it, without folders."""
    usual, options = arguments(), list[str]()
    for name, value in vars(args).items():
        if name not in ("data", "held_out", "weights", "out", "check") and value != usual.get_default(name):
            given = [] if value is True else value if isinstance(value, list) else [str(value)]
            options += [f"--{name.replace('_', '-')}", *map(shlex.quote, given)]
    variables = {
        "DATA": os.path.basename(args.data),
        "OUT": args.out.name,
        "HELD_OUT": os.path.basename(args.held_out or ""),
        "WEIGHTS": "" if args.weights in (None, "small") else args.weights,
        "OPTIONS": shlex.quote(" ".join(options)) if options else "",
    }
    return " ".join(["make tune", *(f"{name}={value}" for name, value in variables.items() if value)])
