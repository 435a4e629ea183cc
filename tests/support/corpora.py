"""Corpora to test with: texts, files of them in every format, and a run in this process."""

import bz2
import csv
import gzip
import io
import json
import lzma
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.blocks import Limits
from corpus.pipeline import Pipeline
from corpus.readers import Reader
from corpus.rows import Columns
from corpus.run import Job, Progress, check_output, parts_of, run
from corpus.shards import Parts
from engine.contract import Engine
from texts.options import Options

WORDS = ["red", "old", "bright", "river", "house", "letter", "sings", "falls", "opens", "Wien", "東京", "привет"]


def texts(count: int, first: int = 0) -> list[str]:
    """Return different texts of 2 to 9 words."""
    return [
        " ".join([f"{i}", *(WORDS[(i * (k + 3) + k) % len(WORDS)] for k in range(1 + i % 8))])
        for i in range(first, first + count)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the name's format and compression say; .txt has only their `text`."""
    suffixes = path.suffixes
    if suffixes[0] == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if suffixes[0] == ".jsonl":
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
    source: Path,
    output: Path,
    columns: Columns | None = None,
    settings: Options | None = None,
    limits: Limits | None = None,
    skip: bool = False,
) -> Progress:
    """Run a job to its end in this process."""
    settings = settings or Options()
    reader = Reader(str(source), columns or Columns())
    parts = Parts(parts_of(output), reader.carried_fields)
    form = check_output(output)
    parts.open({})
    pipeline = Pipeline(engine.tokenizer, engine.embed, settings, parts, skip)
    with closing(parts), closing(pipeline):
        job = Job(reader, output, form, settings, limits or Limits(rows=16), parts, skip)
        *_, last = run(job, pipeline.submit, 1, {"model": "small"})
    return last
