"""Embed a file of texts into a file of vectors, on all GPUs of this machine or its CPU.

    python -m scripts.embed_corpus corpus.jsonl vectors.parquet --task retrieval_document --id key --carry url
    python -m scripts.embed_corpus corpus.txt.zst vectors.npy --dim 256 --precision int8 --on-error skip
    python -m scripts.embed_corpus books.parquet chunks.parquet --chunk 512 --overlap 64
    python -m scripts.embed_corpus s3://bucket/texts s3://bucket/vectors --id key --ray auto --workers 2-16

Interrupted, by Ctrl-C or in any other way, it goes on where it was when it is started again. Exit status: 0 when the
output is there, 1 with a sentence when it is not, 2 for options it does not understand, 130 after Ctrl-C.
"""

import argparse
import importlib.metadata
import logging
import os
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

from tqdm import tqdm

import encoding
import weights
from corpus.blocks import Limits
from corpus.processes import Processes, Work, environments
from corpus.readers import Reader
from corpus.rows import Columns
from corpus.run import Job, Progress, check_output, parts_of, run
from corpus.shards import Parts
from corpus.writers import OUTPUT_FORMATS, side_file
from engine.tokenizer import Truncate
from tasks import PROMPTS, prompt_for
from texts.chunking import Chunking
from texts.options import Options

logger = logging.getLogger("embed_corpus")

# Rows of a window: on a GPU enough for many of its batches, on a CPU some seconds' work, so that little is lost.
WINDOW = {"cpu": 2_048, "cuda": 32_768}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help=".txt, .jsonl, .csv (also .gz, .bz2, .xz, .zst) or .parquet; a path or a URL")
    parser.add_argument("output", help=f"{', '.join(f'.{form}' for form in OUTPUT_FORMATS)}; with --ray a folder")
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS"), help="as the variable WEIGHTS")
    columns = parser.add_argument_group("columns")
    columns.add_argument("--text", default="text", metavar="COLUMN", help="the texts (default: text)")
    columns.add_argument("--title", metavar="COLUMN", help="the documents' titles")
    columns.add_argument("--id", metavar="COLUMN", help="the ids (default: the line's or row's number, from 1)")
    columns.add_argument("--carry", action="append", default=[], metavar="COLUMN", help="copy it to the output")
    vectors = parser.add_argument_group("vectors")
    vectors.add_argument("--task", default="retrieval_document", choices=list(PROMPTS))
    vectors.add_argument("--dim", type=int, default=768, choices=[768, 512, 256, 128])
    vectors.add_argument("--no-normalize", dest="normalize", action="store_false")
    vectors.add_argument("--precision", default="float32", choices=list(encoding.WIRE_DTYPES))
    vectors.add_argument("--truncate", default="end", choices=get_args(Truncate), help="of a text beyond the limit")
    vectors.add_argument("--chunk", type=int, metavar="TOKENS", help="cut longer texts into chunks")
    vectors.add_argument("--overlap", type=int, default=0, metavar="TOKENS", help="of a chunk with the next")
    vectors.add_argument("--late", action="store_true", help="late chunking: chunks read in the company of the others")
    running = parser.add_argument_group("run")
    running.add_argument("--on-error", choices=["stop", "skip"], default="stop", help="at a row that has no vector")
    running.add_argument("--devices", type=int, help="how many GPUs, or shares of the CPU (default: all GPUs, or one)")
    running.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="on a Ray cluster (default: local)")
    running.add_argument("--workers", type=_range, default=(1, 1), metavar="MIN[-MAX]", help="with --ray: its actors")
    running.add_argument("--window", type=int, help="rows sorted by length and stored at once")
    args = parser.parse_args(arguments)
    if args.chunk is None and (args.overlap or args.late):
        parser.error("--overlap and --late need --chunk")
    return args


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    return int(least), int(most or least)


def settings_of(args: argparse.Namespace) -> Options:
    """Return what the vectors are to be. Raises ValueError for what does not go together."""
    prompt_for(args.task, "a title" if args.title else None)
    chunking = Chunking(args.chunk, args.overlap, args.late) if args.chunk is not None else None
    return Options(args.task, args.dim, args.normalize, args.precision, args.truncate, chunking)


def columns_of(args: argparse.Namespace) -> Columns:
    """Return which columns are read. Raises CorpusError when one would be in the output twice."""
    return Columns(args.text, args.title, args.id, tuple(args.carry))


def manifest(
    args: argparse.Namespace, settings: Options, model: str, environment: dict[str, str], window: int
) -> dict[str, Any]:
    """Return everything that the output's bytes depend on besides the input: a run goes on only with the same."""
    columns = {"text": args.text, "title": args.title, "id": args.id, "carry": list(args.carry)}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "tokenizers", "numpy")}
    return {
        "model": model,
        **settings.described(),
        **columns,
        "window": window,
        "engine": os.environ.get("ENGINE") or "packed",
        "threads": environment.get("OMP_NUM_THREADS", "a GPU"),
        **versions,
    }


def embed(args: argparse.Namespace) -> Progress:
    """Do it, with a progress bar. Raises CorpusError or another ValueError in words when it cannot be done."""
    output = Path(args.output)
    settings = settings_of(args)
    if output.exists() and parts_of(output).exists():
        Parts(parts_of(output)).remove()  # a run was killed between its last two steps
        return Progress(finished=True)
    form = check_output(output)
    reader = Reader(args.input, columns_of(args))
    checkpoint = weights.resolve(args.weights)
    chosen = environments(args.devices)
    parts = Parts(parts_of(output), reader.carried_fields)
    window = args.window or WINDOW["cuda" if "CUDA_VISIBLE_DEVICES" in chosen[0] else "cpu"]
    parts.open(manifest(args, settings, checkpoint.name, chosen[0], window))
    work = Work(checkpoint.directory, settings, parts.folder, reader.carried_fields, args.on_error == "skip")
    with closing(parts), closing(work.pipeline() if len(chosen) == 1 else Processes(work, chosen)) as devices:
        job = Job(reader, output, form, settings, Limits(rows=window), parts, work.skip)
        return _show(run(job, devices.submit, len(chosen), {"model": checkpoint.name}))


def _show(steps: Generator[Progress]) -> Progress:
    """Follow a run with a bar; as many rows are expected as the part of the file that was read lets one expect."""
    last = Progress()
    with closing(steps), tqdm(unit=" texts", dynamic_ncols=True) as bar:
        for last in steps:
            bar.total = last.expected
            if last.rows == last.resumed:
                bar.n = bar.initial = last.resumed  # not this run's work: the rate leaves it out
            bar.set_postfix_str(f"{last.tokens / max(bar.format_dict['elapsed'], 1e-9):,.0f} tokens/s", refresh=False)
            bar.update(last.rows - bar.n)
    return last


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = parse()
    try:
        if args.ray is not None:
            from corpus import cluster  # needs requirements-ray.txt

            rows = cluster.embed(args, settings_of(args), columns_of(args))
            logger.info("%s: %d rows", args.output, rows)
            return
        last = embed(args)
    except ModuleNotFoundError as error:
        sys.exit(f"embed_corpus: ray: {error}; install requirements-ray.txt")
    except ValueError as error:
        sys.exit(f"embed_corpus: {error}")
    except KeyboardInterrupt:
        logger.info("Interrupted; what is done is kept: run the same again to go on.")
        os._exit(130)  # not waiting for the window that is being computed: half done, it counts for nothing
    if last.skipped:
        listed = side_file(Path(args.output), "skipped.jsonl")
        logger.info("%d rows have no vector; %s says why", last.skipped, listed)
    if last.windows:
        logger.info("%s: %d rows, %d texts computed", args.output, last.rows, last.computed)
    else:
        logger.info("%s: it was whole already", args.output)


if __name__ == "__main__":
    main()
