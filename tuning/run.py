"""From rows to a checkpoint in its place: train, choose, measure before and after, and write."""

import dataclasses
import logging
import shlex
import shutil
import warnings
from pathlib import Path
from typing import Any

import datasets
from sklearn.exceptions import UndefinedMetricWarning
from transformers.utils.logging import disable_progress_bar

from benchmarks.report import machine, versions
from fetching.files import hash_file
from tuning.asked import MOST_LOST, Asked, arguments, check_work, identity
from tuning.data import path_name
from tuning.measure import FORMS, choose, compare, in_words, score, tasks_of, verdict
from tuning.page import draw
from tuning.recipe import Recipe
from tuning.split import Parts, shared_with
from tuning.train import train, write_json
from tuning.write import finish, place, write_weights

logger = logging.getLogger("tuning")


def tune(asked: Asked, work: Path) -> bool:
    """Tune and return whether the checkpoint is rejected; what is done so far is in `work`.

    Raises TuningError, and what loading and writing raise.
    """
    be_quiet()
    if check_work(asked, work):
        logger.info("Going on with what is in %s", work)
    work.mkdir(exist_ok=True)
    write_json(work / "asked.json", identity(asked))
    logger.info("%s", described(asked))
    figures = results(asked, work)
    staged = work / "staged"
    write_weights(asked.base.directory, work / f"{figures['chosen']}.safetensors", staged)
    finish(staged, figures, draw(figures, work))
    rejected = bool(figures["reasons"])
    out = asked.rejected if rejected else asked.args.out
    place(staged, out)
    shutil.rmtree(work)
    report(figures, out)
    return rejected


def be_quiet() -> None:
    """Turn the libraries' progress bars off, and a warning that means nothing here."""
    datasets.disable_progress_bars()
    disable_progress_bar()
    warnings.simplefilter("ignore", UndefinedMetricWarning)  # a label may have no held-out text


def described(asked: Asked) -> str:
    """Return in sentences what is trained on, and how."""
    data, parts, recipe = asked.data, asked.parts, asked.recipe
    counts = [len(data.examples), len(parts.train), len(parts.choosing), len(parts.held_out)]
    rows, train, choosing, held_out = (f"{count:,}" for count in counts)
    parted = f"{train} to train on, {choosing} to choose by, {held_out} held out"
    chosen = f"Learning rate {recipe.learning_rate:g}, distillation {recipe.distill:g}."
    return "\n".join([f"{path_name(data.path)}: {rows} {data.kind.name}, {parted}.", chosen, *parts.notes])


def results(asked: Asked, work: Path) -> dict[str, Any]:
    """Train, choose among the weights, measure before and after, and return all figures."""
    args, data, parts, base = asked.args, asked.data, asked.parts, asked.base
    files, history = train(data.kind, parts.train, base.directory, asked.recipe, work)
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
        "notes": [*parts.notes, *history.pop("notes"), *overlaps(parts, tasks.general)],
        "recipe": asked.recipe.as_dict(),
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


def command(args: Any) -> str:
    """Return the command in words of `make`, without what only says where things lie."""
    usual = arguments()
    options = [
        f"--{field.name.replace('_', '-')} {getattr(args, field.name)}"
        for field in dataclasses.fields(Recipe)
        if getattr(args, field.name) != usual.get_default(field.name)
    ]
    options += ["--columns", *map(shlex.quote, args.columns)] if args.columns else []
    options += ["--drop-shared"] if args.drop_shared else []
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
