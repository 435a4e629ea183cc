"""Predictions and runs over files, one after another, in a process whose memory the tests watch.

    python -m tests.support.bomb_runs prediction|run [CHUNK OVERLAP]

It reads a path and an output a line, with --on-error skip, without an engine, and answers with what came of it in JSON.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from batching.request import Cost
from corpus import asked_file, prediction
from corpus.blocks import BlockLimits
from corpus.destination import Destination
from corpus.inputs import Inputs
from corpus.pipeline import Pipeline
from corpus.rows import Columns
from corpus.run import CorpusJob, run
from corpus.shards import ShardFolder
from engine.contract import Ranges
from engine.tokenizer import Tokenizer
from texts.options import Options, chunking_of

WINDOW = int(os.environ.get("BOMBS_WINDOW", 2_048))  # as on a CPU


def vectors(token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> np.ndarray:
    return np.ones((sum(map(len, ranges)) if ranges else len(token_ids), 768), np.float32)


async def embed(token_ids: Sequence[Sequence[int]], ranges: Ranges | None = None) -> tuple[np.ndarray, Cost]:
    return vectors(token_ids, ranges), Cost(0, 0, 1, 0)


def predict(path: Path, output: Path, options: Options, tokenizer: Tokenizer) -> int:
    columns = Columns() if ".txt" in path.name else Columns(id="id")
    source = asked_file.InputFile(path, "auto", columns, True, "parquet")
    return asyncio.run(prediction.embed_file(source, output, options, tokenizer, embed, "none")).rows


def run_over(path: Path, output: Path, options: Options, tokenizer: Tokenizer) -> int:
    columns = Columns() if ".txt" in path.name else Columns(id="id", carried=("load",))
    with closing(Inputs([str(path)], columns)) as inputs:
        job = CorpusJob(inputs, Destination.of(str(output)), "none", options, BlockLimits(WINDOW), True)
        shards = ShardFolder(output)
        shards.open({})
        with closing(shards), closing(Pipeline(tokenizer, vectors, options, shards, True)) as pipeline:
            *_, last = run(job, shards, pipeline.submit)
    return last.rows


def main() -> None:
    chunk, overlap = map(int, sys.argv[2:4] or ("0", "0"))
    options = Options(chunking=chunking_of(chunk or None, overlap, False))
    tokenizer = Tokenizer(Path("checkpoints/small"))
    print(json.dumps("ready"), flush=True)
    work = {"prediction": predict, "run": run_over}[sys.argv[1]]
    for line in sys.stdin:
        path, output = map(Path, json.loads(line))
        began = time.monotonic()
        try:
            said: object = work(path, output, options, tokenizer)
        except ValueError as error:
            said = str(error)
        print(json.dumps([said, round(time.monotonic() - began, 2)]), flush=True)


if __name__ == "__main__":
    main()
