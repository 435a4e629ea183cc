"""What the vectors are worth: quality beside bytes and speed, on mteb's tasks or on your own data.

    python -m lab.evaluation --weights small                       # three small tasks that come with the project
    python -m lab.evaluation --tasks STSBenchmark,NFCorpus         # mteb's tasks by name, or one of its benchmarks
    python -m lab.evaluation --data my/                            # corpus.jsonl, queries.jsonl and judgements
    python -m lab.evaluation --url http://localhost:5000           # what a running container computes

Writes a page, its figures and plots. Vectors and scores are kept in a folder, so the same command resumes after it was
killed.
"""

import argparse
import json
import logging
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets

from lab.evaluation.local_tasks import own
from lab.evaluation.plots import draw
from lab.evaluation.results import card_rows, figures_of, page
from lab.evaluation.run import QUICK, Line, Scorer, fill, load, tables_of, tasks_named
from lab.evaluation.sources import EngineSource, EvaluationError, ServerSource, Source
from lab.evaluation.store import Store
from lab.report import machine, versions
from settings.masking import keep_secrets, masked, masked_address
from tasks import PROMPTS

logger = logging.getLogger("evaluation")

WORK = Path("evaluation-work")
FORMATS = ("auto", "float32", "bfloat16", "float16", "int8")


def main() -> None:
    keep_secrets()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logger.setLevel(logging.INFO)
    datasets.disable_progress_bars()
    args = arguments().parse_args()
    try:
        logger.info("%s", evaluate(args))
    except (EvaluationError, RuntimeError, ValueError) as error:
        sys.exit(masked(error))


def arguments() -> argparse.ArgumentParser:
    """Return the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.evaluation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS"), help="as WEIGHTS would name it")
    parser.add_argument("--url", help="a running container's Cog API, instead of an engine in this process")
    parser.add_argument("--tasks", default=QUICK, help=f"{QUICK}, mteb tasks (comma-separated), or an mteb benchmark")
    parser.add_argument("--data", type=Path, help="a folder of your own data, instead of --tasks")
    parser.add_argument(
        "--formats", default="auto,float32", help="the engine's formats to compare; the tables are the first one's"
    )
    parser.add_argument("--prompts", default="", help="other prompts for some mteb tasks: ArguAna=fact_verification")
    parser.add_argument("--work", type=Path, default=WORK, help=f"where vectors and scores are kept (default {WORK})")
    parser.add_argument("--out", type=Path, help="the folder of the page (default: report in the folder of --work)")
    return parser


def evaluate(args: argparse.Namespace) -> Path:
    """Evaluate as the options say and return the page's file. Raises EvaluationError, or what a source does."""
    chosen, formats = prompts_of(args.prompts), [None] if args.url else formats_of(args.formats)
    tasks = [own(args.data)] if args.data else tasks_named(args.tasks)
    first = source_of(args, formats[0])
    store = Store(args.work / "vectors.sqlite", first)
    tables, scorer = tables_of(store, chosen), Scorer(args.work)
    fill(tables, store, tasks, scorer, chosen)
    compared = [(first.model.rpartition("+")[2], None if args.url else store.tokens_per_s(), tables.full)]
    for dtype in formats[1:]:
        if dtype not in [name for name, *_ in compared]:
            store = Store(args.work / "vectors.sqlite", source_of(args, dtype))
            compared.append(compare(store, tasks, scorer, chosen))
    figures = figures_of(tables, compared, tasks) | {
        "name": first.name,
        "model": first.model,
        "generation": first.generation,
        "asked": args.tasks if args.data is None else str(args.data),
        "command": command(args),
        "machine": machine(),
        "versions": versions(),
    }
    figures["card"] = card_rows(figures["rows"], figures["asked"], first.generation)
    return write(figures, args.out or args.work / "report")


def source_of(args: argparse.Namespace, dtype: str | None) -> Source:
    """Return the source of the vectors."""
    return ServerSource(args.url) if args.url else EngineSource(args.weights, dtype)


def compare(store: Store, tasks: list[Any], scorer: Scorer, chosen: dict[str, str]) -> tuple[str, float | None, Line]:
    """Return an engine format, its tokens a second and its full vectors' scores."""
    name = store.source.model.rpartition("+")[2]
    logger.info("the same in %s", name)
    line = replace(tables_of(store, chosen).full, name=name)
    for task in tasks:
        load(task)
        scorer.score(line, task)
        task.unload_data()
    return name, store.tokens_per_s(), line


def formats_of(option: str) -> list[str]:
    """Return the formats of --formats. Raises EvaluationError for a format that the engine does not have."""
    formats = [each.strip() for each in option.split(",")]
    if unknown := [each for each in formats if each not in FORMATS]:
        raise EvaluationError(f"--formats: the engine has no {unknown[0]!r}; it has {', '.join(FORMATS)}")
    return formats


def prompts_of(option: str) -> dict[str, str]:
    """Return the tasks of --prompts, a comma-separated list of NAME=task. Raises EvaluationError for anything else."""
    chosen = {}
    for each in filter(None, option.split(",")):
        name, _, task = each.partition("=")
        if task not in PROMPTS:
            raise EvaluationError(f"--prompts: {each!r} is not NAME=task; the tasks are {', '.join(PROMPTS)}")
        chosen[name.strip()] = task
    return chosen


def command(args: argparse.Namespace) -> str:
    """Return the command as `make` takes it, without the options that only name folders."""
    settings = {
        "WEIGHTS": masked_address(args.weights or ""),
        "URL": masked_address(args.url or ""),
        "DATA": args.data,
        "FORMATS": args.formats,
    }
    settings |= {} if args.data or args.tasks == QUICK else {"TASKS": args.tasks}
    usual = {"WEIGHTS": "small", "FORMATS": arguments().get_default("formats")}
    given = [
        f"{name}={shlex.quote(str(value))}" for name, value in settings.items() if value and usual.get(name) != value
    ]
    given += [f"OPTIONS={shlex.quote(f'--prompts {args.prompts}')}"] if args.prompts else []
    return " ".join(["make evaluate", *given])


def write(figures: dict[str, Any], folder: Path) -> Path:
    """Write page, figures and plots into a folder and return the page's file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evaluation.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    draw(figures, folder)
    path = folder / "README.md"
    path.write_text(page(figures), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
