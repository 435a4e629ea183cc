"""Corpora to test with: texts, files of them in every format, a run in this process, and what an output holds."""

import bz2
import csv
import gzip
import io
import json
import lzma
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import encoding
from corpus.blocks import BlockLimits
from corpus.destination import Destination
from corpus.inputs import Inputs
from corpus.pipeline import Pipeline, RunProgress
from corpus.rows import Columns
from corpus.run import CorpusJob, run
from corpus.shards import ShardFolder
from engine.contract import Engine
from tasks import prompt_for
from texts.options import Options

WORDS = ["red", "old", "bright", "river", "house", "letter", "sings", "falls", "opens", "Wien", "東京", "привет"]


def texts(count: int, first: int = 0) -> list[str]:
    """Return different texts of 2 to 9 words."""
    return [
        " ".join([f"{i}", *(WORDS[(i * (k + 3) + k) % len(WORDS)] for k in range(1 + i % 8))])
        for i in range(first, first + count)
    ]


# Lengths out of order, texts twice in one block and in several, more than two blocks of 16.
TEXTS = [*texts(20), *texts(10, first=5), *texts(12, first=30), "word and " * 300]
ROWS: list[dict[str, Any]] = [
    {"text": text, "number": i, "name": f"key-{i}", "head": f"Title {i % 3}" if i % 3 else None, "note": {"i": i}}
    for i, text in enumerate(TEXTS)
]
COLUMNS = Columns(title="head", id="name")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the name's format and compression say; .txt has only their `text`."""
    suffixes = path.suffixes
    if suffixes[0] == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if suffixes[0] in (".arrow", ".arrows", ".feather"):
        table = pa.Table.from_pylist(rows)
        new = pa.ipc.new_stream if suffixes[0] == ".arrows" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=200)
        return path
    if suffixes[0] in (".jsonl", ".ndjson"):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    elif suffixes[0] == ".csv":
        buffer = io.StringIO()
        table = csv.DictWriter(buffer, rows[0])
        table.writeheader()
        table.writerows(rows)
        content = buffer.getvalue()
    else:
        content = "".join(row["text"] + "\n" for row in rows)
    data = content.encode()
    if suffixes[-1] == ".zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(data)
        return path
    compressors: dict[str, Any] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path.write_bytes(compressors.get(suffixes[-1], bytes)(data))
    return path


def embed(
    engine: Engine,
    source: Path | str,
    output: Path,
    columns: Columns | None = None,
    options: Options | None = None,
    limits: BlockLimits | None = None,
    skip: bool = False,
) -> RunProgress:
    """Run a job to its end in this process."""
    inputs, destination = Inputs([str(source)], columns or Columns(), skip=skip), Destination.of(str(output))
    job = CorpusJob(inputs, destination, "small", options or Options(), limits or BlockLimits(rows=16), skip)
    shards = ShardFolder(output)
    shards.open({})
    pipeline = Pipeline(engine.tokenizer, engine.embed, job.options, shards, skip)
    with closing(inputs), closing(shards), closing(pipeline):
        *_, last = run(job, shards, pipeline.submit)
    return last


def embed_alone(engine: Engine, some: list[str], titles: list[str | None], task: str) -> np.ndarray:
    """Return unit vectors, each computed alone."""
    prompts = [prompt_for(task, title) for title in titles]
    ids = [engine.tokenizer.encode([prompt], [text])[0].ids for prompt, text in zip(prompts, some, strict=True)]
    return encoding.cut(np.concatenate([engine.embed([text_ids]) for text_ids in ids]), 768, True)


def output_vectors(path: Path) -> np.ndarray:
    """Return the vectors of an output of any format."""
    if path.suffix == ".npy":
        return np.asarray(np.load(path, mmap_mode="r"))
    if path.suffix == ".jsonl":
        return np.array([json.loads(line)["embedding"] for line in path.read_text().splitlines()])
    column = pq.read_table(path)["embedding"].combine_chunks()
    return np.asarray(column.values.to_numpy()).reshape(len(column), -1)


def output_rows(path: Path) -> list[dict[str, Any]]:
    """Return everything else of an output."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return list(pq.read_table(path.with_suffix(".rows.parquet") if path.suffix == ".npy" else path).to_pylist())
