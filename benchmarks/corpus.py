"""Measure a run of a corpus, from file to file, against the engine alone on the same texts.

    python -m benchmarks.corpus small texts.txt --texts 200000

The engine alone: token ids that were made beforehand, in windows as large as the run's. Texts are repeated as needed,
with a number before each so that none is a duplicate. Both are measured piece by piece in turn, as other programs may
be running.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

import engine
import weights
from corpus.blocks import Limits
from corpus.pipeline import Pipeline
from corpus.readers import Reader
from corpus.rows import Columns
from corpus.run import Job, check_output, parts_of, run
from corpus.shards import Parts
from engine.contract import Engine
from engine.threads import in_own_thread
from tasks import prompt_for
from texts.options import Options

logger = logging.getLogger("measure_corpus")


def embed_alone(loaded: Engine, texts: Sequence[str], window: int) -> tuple[float, int]:
    """Return the seconds that the engine takes for these texts, and their tokens."""
    prompt = prompt_for("retrieval_document")
    ids = [one.ids for one in loaded.tokenizer.encode([prompt] * len(texts), texts)]
    start = time.perf_counter()
    for first in range(0, len(ids), window):
        loaded.embed(ids[first : first + window])
    return time.perf_counter() - start, sum(map(len, ids))


def embed_file(loaded: Engine, source: Path, output: Path, window: int) -> float:
    """Return the seconds that a run takes from this file to that one."""
    start = time.perf_counter()
    parts = Parts(parts_of(output))
    parts.open({})
    with closing(parts), closing(Pipeline(loaded.tokenizer, loaded.embed, Options(), parts, False)) as pipeline:
        job = Job(
            Reader(str(source), Columns()), output, check_output(output), Options(), Limits(rows=window), parts, False
        )
        for _ in run(job, pipeline.submit, 1, {}):
            pass
    return time.perf_counter() - start


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="as the variable WEIGHTS")
    parser.add_argument("file", type=Path, help="a text a line")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--window", type=int, default=2_048)
    parser.add_argument("--pieces", type=int, default=4, help="how often the two take turns")
    args = parser.parse_args()
    lines = [line for line in args.file.read_text(encoding="utf-8").split("\n") if line.strip()]
    texts = [f"{i} {lines[i % len(lines)]}" for i in range(args.texts)]
    loaded = engine.load(weights.resolve(args.weights).directory)
    in_own_thread(lambda: embed_alone(loaded, texts[:2000], args.window))
    alone = whole = 0.0
    tokens = 0
    with tempfile.TemporaryDirectory() as folder:
        for k in range(args.pieces):
            piece = texts[k * len(texts) // args.pieces : (k + 1) * len(texts) // args.pieces]
            seconds, count = in_own_thread(partial(embed_alone, loaded, piece, args.window))
            alone, tokens = alone + seconds, tokens + count
            source, output = Path(folder) / f"{k}.txt", Path(folder) / f"{k}.parquet"
            source.write_text("\n".join(piece), encoding="utf-8")
            whole += embed_file(loaded, source, output, args.window)
            output.unlink()
    logger.info("%d texts, %d tokens; %s, torch %s", len(texts), tokens, loaded.description, torch.__version__)
    for name, seconds in (("the engine alone", alone), ("file to file", whole)):
        logger.info("%-16s %8.1f s %8.0f texts/s %8.0f tokens/s", name, seconds, len(texts) / seconds, tokens / seconds)
    logger.info("file to file reaches %.1f %% of the engine alone", 100 * alone / whole)


if __name__ == "__main__":
    main()
