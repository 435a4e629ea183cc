"""Embed a file of texts into a file of vectors, on all GPUs of this machine or its CPU.

    python -m scripts.embed_corpus corpus.jsonl vectors.parquet --task retrieval_document --id key --carry url
    python -m scripts.embed_corpus corpus.txt.zst vectors.npy --dim 256 --precision int8 --on-error skip
    python -m scripts.embed_corpus books.parquet chunks.parquet --chunk 512 --overlap 64
    python -m scripts.embed_corpus 's3://bucket/**/*.parquet' vectors.parquet --text page.body --id url --carry all
    python -m scripts.embed_corpus s3://bucket/texts s3://bucket/vectors --id key --ray auto --workers 2-16

After Ctrl-C or any other interruption, the same command continues where the run stopped. Exit status: 0 when the output
is complete, 1 with a sentence when it is not, 2 for wrong options, 130 after Ctrl-C.
"""

import argparse
import importlib.metadata
import logging
import os
import sys
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn, get_args

import encoding
import engine
import weights
from corpus.blocks import BlockLimits
from corpus.destination import DEFAULT_FILE_MB, Destination, skipped_list
from corpus.inputs import Inputs
from corpus.listing import covers, is_utf8, spooled
from corpus.output_files import OUTPUT_FORMATS, side_files
from corpus.pipeline import DeviceJob, RunProgress
from corpus.progress import shown
from corpus.readers import FORMATS
from corpus.rows import Columns, CorpusError
from corpus.run import CorpusJob, finish, run
from corpus.shards import ShardFolder, shards_path
from engine.contract import DeviceError
from engine.device import device_shares
from engine.tokenizer import Truncate
from settings import logs, masking
from tasks import PROMPTS, TITLED_TASK, prompt_for
from texts.options import EMBEDDING_DIMS, Options, chunking_of
from weights import WeightsError

logger = logging.getLogger("embed_corpus")

# Rows of a block: on a GPU enough for many batches, on a CPU a few seconds' work, so that little is lost.
BLOCK_ROWS = {"cpu": 2_048, "cuda": 32_768}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    outputs = ", ".join(f".{form}" for form in (*OUTPUT_FORMATS, "lance"))
    formats = ".txt, .jsonl, .csv (also .gz, .bz2, .xz, .zst), .parquet or .arrow"
    parser.add_argument("input", nargs="+", help=f"{formats}: paths, URLs, folders, globs, or - for standard input")
    parser.add_argument("output", help=f"path or URL of a file ({outputs}) or, with / at its end, of a folder")
    parser.add_argument("--weights", default=os.environ.get("WEIGHTS"), help="checkpoint (default: variable WEIGHTS)")
    parser.add_argument(
        "--format", choices=sorted({*FORMATS.values()}), help="of all files (default: as their names say)"
    )
    columns = parser.add_argument_group("columns")
    columns.add_argument("--text", default="text", metavar="COLUMN", help="column of the texts (default: text)")
    columns.add_argument("--title", metavar="COLUMN", help="column of the documents' titles")
    columns.add_argument("--id", metavar="COLUMN", help="column of the ids (default: number of the line or row)")
    columns.add_argument("--carry", action="append", default=[], metavar="COLUMNS", help="copy these (a,b), or all")
    vectors = parser.add_argument_group("vectors")
    vectors.add_argument("--task", choices=list(PROMPTS), help="use of the vectors (default: retrieval_document)")
    vectors.add_argument("--dim", type=int, default=768, choices=EMBEDDING_DIMS, help="vector size (default: 768)")
    vectors.add_argument("--no-normalize", dest="normalize", action="store_false", help="do not scale to length 1")
    vectors.add_argument("--precision", default="float32", choices=list(encoding.WIRE_DTYPES), help="number format")
    vectors.add_argument("--truncate", default="end", choices=get_args(Truncate), help="end of a long text to cut off")
    vectors.add_argument("--chunk", type=int, metavar="TOKENS", help="cut texts into chunks of at most this length")
    vectors.add_argument("--overlap", type=int, default=0, metavar="TOKENS", help="tokens shared by adjacent chunks")
    vectors.add_argument("--late", action="store_true", help="late chunking: encode neighbouring chunks together")
    _add_output_options(parser.add_argument_group("output"))
    running = parser.add_argument_group("run")
    running.add_argument("--on-error", choices=["stop", "skip"], default="stop", help="what to do at a bad row")
    running.add_argument("--devices", type=int, help="number of GPUs or CPU shares (default: all GPUs, or 1)")
    running.add_argument("--ray", nargs="?", const="local", metavar="ADDRESS", help="run on Ray (default: local)")
    running.add_argument("--workers", type=_range, metavar="MIN[-MAX]", help="actors of --ray (default: 1)")
    running.add_argument("--window", type=_positive, help="rows sorted by length and stored together")
    running.add_argument("--log", choices=["console", "json"], default="console", help="json: an object a line")
    args = parser.parse_args(arguments)
    if problem := _problem(args):
        parser.error(problem)
    return args


def _problem(args: argparse.Namespace) -> str:
    """Return what is wrong with options together, "" if nothing is."""
    if "" in (*args.input, args.output):
        return "the name of an input or of the output is empty; give a path or a URL"
    for name in ("output", "text", "title", "id", "carry", "partition_by"):
        if not is_utf8("".join(getattr(args, name) or "")):
            return f"{name}: it is not UTF-8; name another, or rename it"
    if "-" in args.input and len(args.input) > 1:
        return "-: standard input is read alone; write it to a file and name that beside the others"
    if args.input == ["-"] and not args.format:
        return "-: standard input has no name that tells its format; name it with --format"
    if args.ray is None and args.workers:
        return "--workers needs --ray; without it --devices says how many compute"
    if args.ray is not None and args.devices:
        return "--devices has no meaning with --ray; --workers says how many compute"
    if args.ray is not None and "-" in args.input:
        return "-: only this process reads standard input; with --ray name files"
    if args.remove and not args.update:
        return "--remove needs --update"
    if args.update and not args.id:
        return "--update needs --id, as rows are known by their ids"
    return ""


def _add_output_options(output: argparse._ArgumentGroup) -> None:
    output.add_argument("--update", action="store_true", help="embed only texts that the output does not have yet")
    output.add_argument("--remove", action="store_true", help="with --update: remove rows that the input lacks")
    output.add_argument("--file-mb", type=_positive, default=DEFAULT_FILE_MB, help="size of a folder's files (MB)")
    output.add_argument("--partition-by", action="append", default=[], metavar="COLUMN", help="folders column=value")


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition("-")
    numbers = _positive(least), _positive(most or least)
    if numbers[0] > numbers[1]:
        raise argparse.ArgumentTypeError(f"{text!r} begins with more than it ends with")
    return numbers


def options_of(args: argparse.Namespace) -> Options:
    """Return the options of the vectors. Raises ValueError for options that contradict each other."""
    prompt_for(args.task or TITLED_TASK, "a title" if args.title else None)
    chunking = chunking_of(args.chunk, args.overlap, args.late)
    return Options(args.task, args.dim, args.normalize, args.precision, args.truncate, chunking)


def manifest(job: CorpusJob, number_format: str, environment: dict[str, str]) -> dict[str, Any]:
    """Return everything that the output's bytes depend on besides the input: only an equal run can continue."""
    columns = job.inputs.columns
    return {
        "dtype": number_format,
        "model": job.model,
        **job.options.described(),
        "text": columns.text,
        "title": columns.title,
        "id": columns.id,
        "carry": list(columns.carried),
        "output": job.destination.target,
        "update": job.destination.update,
        "remove": job.destination.remove,
        "file_mb": job.destination.file_mb,
        "partition": list(job.destination.partition),
        "window": job.limits.rows,
        "engine": os.environ.get("ENGINE", "").strip() or "packed",
        "threads": environment.get("OMP_NUM_THREADS", "a GPU"),
        **{name: importlib.metadata.version(name) for name in ("torch", "tokenizers", "numpy")},
    }


def embed(args: argparse.Namespace, options: Options, columns: Columns) -> tuple[RunProgress, float]:
    """Run to the end, showing progress, and return it and the tokens a second. Raises an error with a sentence."""
    destination, skip = _destination(args), args.on_error == "skip"
    shards = ShardFolder(destination.base)
    if not (shards.is_done or destination.is_whole):
        destination.check_new(skip)
    with ExitStack() as opened:
        inputs = opened.enter_context(closing(_inputs(args, columns, opened)))
        checkpoint = weights.resolve(args.weights)
        devices = device_shares(args.devices)
        rows = args.window or BLOCK_ROWS["cuda" if "CUDA_VISIBLE_DEVICES" in devices[0] else "cpu"]
        number_format = engine.number_format(checkpoint.directory, measured=weights.measurements())
        job = CorpusJob(inputs, destination, checkpoint.computed_in(number_format), options, BlockLimits(rows), skip)
        shards.open(manifest(job, number_format, devices[0]))
        opened.enter_context(closing(shards))
        if shards.is_done or destination.is_whole:  # a run was killed in its last steps
            finish(destination, shards)
            return RunProgress(), 0
        job = replace(job, previous=destination.open_previous({"model": job.model, **options.described()}))
        shards.check_previous(destination.identity())
        device_job = DeviceJob(checkpoint.directory, number_format, options, destination.base, skip)
        computing = opened.enter_context(closing(device_job.devices(devices)))
        return shown(run(job, shards, computing.submit, len(devices)), args.log == "json")


def _destination(args: argparse.Namespace) -> Destination:
    """Return where the output goes. Raises CorpusError where that cannot be, and for a place among the input's."""
    given = {"remove": args.remove, "file_mb": args.file_mb, "partition": tuple(args.partition_by)}
    destination = Destination.of(args.output, args.update, **given)
    base, target = destination.base, destination.target
    product = os.path.join(target, "part-00000.parquet") if destination.form == "folder" else target
    beside = () if destination.file_system else side_files(base, skip=True)
    for path in (*map(str, (shards_path(base) / "a" / "rows.arrow", *beside)), product):
        for source in args.input:
            is_said = path == product and not args.update  # otherwise, where the output exists
            if covers(source, path) and not (is_said and destination.exists()):
                what = "writes a file of this name" if source == path else "writes files among these"
                raise CorpusError(source, f"the run to {target} {what}", "name another output")
    return destination


def _inputs(args: argparse.Namespace, columns: Columns, opened: ExitStack) -> Inputs:
    """Return the input. Raises CorpusError where it cannot be read."""
    paths, name = args.input, None
    if paths == ["-"]:
        if not sys.stdin:
            raise CorpusError("standard input", "it is closed", "name files, or send it the texts")
        paths, name = [opened.enter_context(spooled(sys.stdin.buffer)).name], "standard input"
    return Inputs(paths, columns, args.format, args.on_error == "skip", name)


def _columns(args: argparse.Namespace) -> Columns:
    """Return which columns hold what. Raises CorpusError for a carried one that cannot be."""
    asked = [name for names in args.carry for name in names.split(",")]
    carried = (*asked, *(name for name in args.partition_by if name not in asked))
    return Columns(args.text, args.title, args.id, () if "all" in carried else carried, carry_all="all" in carried)


def _embed_on_cluster(args: argparse.Namespace, options: Options, columns: Columns) -> tuple[int, int]:
    """Return how many rows have a vector, and how many none. Raises CorpusError; ModuleNotFoundError without Ray."""
    from corpus import cluster  # needs requirements/ray.txt

    if args.output.endswith(tuple(f".{form}" for form in (*OUTPUT_FORMATS, "lance"))):
        remedy = "name a folder, ending with /, which databases read as they do a file"
        raise CorpusError(args.output, "with --ray the output is a folder of .parquet files", remedy)
    args.output = f"{args.output.rstrip('/')}/"
    paths = [given if "://" in given else os.path.abspath(given) for given in args.input]
    skip = args.on_error == "skip"
    job = cluster.ActorJob(args.weights, options, skip, args.window or cluster.BLOCK_ROWS)
    open_inputs = partial(Inputs, paths, columns, args.format, skip)
    return cluster.embed(open_inputs, job, _destination(args), args.ray, args.workers or (1, 1))


def main() -> None:
    args = parse()
    logs.of_command(logger.name, *logs.OURS, as_json=args.log == "json")
    try:
        options, columns = options_of(args), _columns(args)
        if args.ray is not None:
            rows, skipped = _embed_on_cluster(args, options, columns)
            if skipped:
                logger.info("%d rows have no vector; %s says why", skipped, skipped_list(args.output))
            logger.info("%s: %d rows", args.output, rows)
            return
        progress, tokens_s = embed(args, options, columns)
    except ModuleNotFoundError as error:
        _fail(f"ray: {error}; install requirements/ray.txt", args)
    except (ValueError, OSError, DeviceError, WeightsError) as error:
        _fail(masking.masked(error), args)
    except KeyboardInterrupt:
        logger.info("Interrupted; what is done is kept: run the same again to go on.")
        os._exit(130)  # without waiting for the block under way, which would be computed again anyway
    _tell_end(args.output, progress, tokens_s)


def _fail(sentence: str, args: argparse.Namespace) -> NoReturn:
    if args.log == "json":
        logger.error("%s", sentence)
        sys.exit(1)
    sys.exit(f"embed_corpus: {sentence}")


def _tell_end(output: str, progress: RunProgress, tokens_s: float) -> None:
    if progress.skipped:
        logger.info("%d rows have no vector; %s says why", progress.skipped, skipped_list(output))
    if progress.prompted:
        logger.info("%d vectors are of texts that began with a prompt, and got no second one", progress.prompted)
    if not progress.blocks:
        logger.info("%s: it was whole already", output)
        return
    facts = {
        "rows": progress.rows,
        "skipped": progress.skipped,
        "reused": progress.resumed,
        "texts": progress.computed,
        "tokens": progress.tokens,
        "tokens_s": round(tokens_s),
    }
    form = "{rows:,} rows, {skipped:,} skipped, {reused:,} reused; {texts:,} texts computed, {tokens:,} tokens, "
    words = f"{output}: {form.format(**facts)}{tokens_s:,.0f} tokens/s"
    logger.info("%s", words, extra={"facts": {"output": output, **facts}})


if __name__ == "__main__":
    main()
