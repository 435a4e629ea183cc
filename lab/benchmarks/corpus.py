"""Measure a run of a corpus, from file to file, against the engine alone on the same texts.

    python -m lab.benchmarks.corpus small texts.txt --texts 200000

The engine alone takes token ids that were made beforehand, in blocks as large as the run's. Texts repeat as needed,
each after a number so that no text is a duplicate. The two take turns, as the machine's speed may drift.
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
from corpus.blocks import BlockLimits
from corpus.destination import Destination
from corpus.inputs import Inputs
from corpus.pipeline import Pipeline
from corpus.rows import Columns
from corpus.run import CorpusJob, run
from corpus.shards import ShardFolder
from engine.contract import Engine
from engine.threads import in_own_thread
from lab.report import table
from tasks import prompt_for
from texts.options import Options

logger = logging.getLogger(__name__)


def embed_alone(loaded: Engine, texts: Sequence[str], block_rows: int) -> tuple[float, int]:
    """Return the seconds that the engine takes for these texts, and how many tokens they have."""
    prompt = prompt_for("retrieval_document")
    token_ids = [text.ids for text in loaded.tokenizer.encode([prompt] * len(texts), texts)]
    start = time.perf_counter()
    for first in range(0, len(token_ids), block_rows):
        loaded.embed(token_ids[first : first + block_rows])
    return time.perf_counter() - start, sum(map(len, token_ids))


def embed_file(loaded: Engine, source: Path, output: Path, block_rows: int) -> float:
    """Return the seconds that a run takes from file to file."""
    start = time.perf_counter()
    inputs, destination = Inputs([str(source)], Columns()), Destination.of(str(output))
    job = CorpusJob(inputs, destination, "", Options(), BlockLimits(rows=block_rows))
    shards = ShardFolder(output)
    shards.open({})
    with closing(shards), closing(Pipeline(loaded.tokenizer, loaded.embed, Options(), shards, False)) as pipeline:
        for _ in run(job, shards, pipeline.submit):
            pass
    return time.perf_counter() - start


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="as the variable WEIGHTS")
    parser.add_argument("file", type=Path, help="a text a line")
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--window", dest="block_rows", type=int, default=2_048, help="rows of a block")
    parser.add_argument("--pieces", type=int, default=4, help="how often the two take turns")
    args = parser.parse_args()
    lines = [line for line in args.file.read_text(encoding="utf-8").split("\n") if line.strip()]
    texts = [f"{i} {lines[i % len(lines)]}" for i in range(args.texts)]
    loaded = engine.load(weights.resolve(args.weights).directory, measured=weights.measurements())
    in_own_thread(lambda: embed_alone(loaded, texts[:2000], args.block_rows))
    alone_s = whole_s = tokens = 0.0
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "texts.txt", Path(folder) / "vectors.parquet"
        for i in range(args.pieces):
            piece = texts[i * len(texts) // args.pieces : (i + 1) * len(texts) // args.pieces]
            seconds, count = in_own_thread(partial(embed_alone, loaded, piece, args.block_rows))
            alone_s, tokens = alone_s + seconds, tokens + count
            source.write_text("\n".join(piece), encoding="utf-8")
            whole_s += embed_file(loaded, source, output, args.block_rows)
            output.unlink()
    rows = [
        [name, f"{seconds:.1f}", f"{len(texts) / seconds:,.0f}", f"{tokens / seconds:,.0f}"]
        for name, seconds in (("the engine alone", alone_s), ("file to file", whole_s))
    ]
    logger.info("%d texts; %s, torch %s", len(texts), loaded.description, torch.__version__)
    logger.info("%s", table(["", "s", "texts/s", "tokens/s"], rows))
    logger.info("file to file reaches %.1f %% of the engine alone", 100 * alone_s / whole_s)


if __name__ == "__main__":
    main()
