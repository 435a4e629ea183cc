"""Measure what an update takes of which 1 % of the rows changed, against the run before it, and the memory of both.

    WEIGHTS=small python -m lab.benchmarks.updates --rows 10000 1000000

Texts are a few words each. Every hundredth row gets another text. Reading is what both do alike: the input to blocks.
"""

import argparse
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from corpus.blocks import BlockLimits, blocks_of
from corpus.inputs import Inputs
from corpus.rows import Columns
from lab.report import table

logger = logging.getLogger(__name__)
AT_ONCE = 100_000


def write_rows(path: Path, rows: int, day: int) -> None:
    """Write a corpus as it is on a day: from the second on, a hundredth of its texts are others."""

    def batches() -> Iterator[pa.Table]:
        for first in range(0, rows, AT_ONCE):
            numbers = range(first, min(first + AT_ONCE, rows))
            texts = [f"page {i} of day {day if i % 100 == 0 else 0}" for i in numbers]
            yield pa.table({"url": [f"https://example.com/{i}" for i in numbers], "text": texts})

    with pq.ParquetWriter(path, pa.schema([("url", pa.string()), ("text", pa.string())])) as writer:
        for batch in batches():
            writer.write_table(batch)


def reading_seconds(path: Path) -> float:
    """Return the seconds that reading takes alone."""
    start = time.perf_counter()
    with closing(Inputs([str(path)], Columns(id="url"))) as inputs:
        for _ in blocks_of(inputs, BlockLimits(rows=2_048), None, False):
            pass
    return time.perf_counter() - start


def measured(*arguments: str) -> tuple[float, str]:
    """Do a run in a process of its own and return its seconds and its most memory in MiB: its own, and of files."""
    start, own, mapped = time.perf_counter(), 0, 0
    process = subprocess.Popen([sys.executable, "-m", "scripts.embed_corpus", *arguments], stderr=subprocess.DEVNULL)
    while process.poll() is None:
        with suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            if found := re.search(r"RssAnon:\s+(\d+) kB\nRssFile:\s+(\d+)", status):
                own, mapped = max(own, int(found[1]) >> 10), max(mapped, int(found[2]) >> 10)
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"embed_corpus ended with {process.returncode}")
    return time.perf_counter() - start, f"{own} + {mapped}"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--output", default="vectors.parquet", help="name of the output; with / at its end a folder")
    args = parser.parse_args()
    lines = []
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            source, output = Path(folder) / "pages.parquet", f"{folder}/{args.output}"
            options = [str(source), output, "--id", "url"]
            write_rows(source, rows, 0)
            whole, whole_mib = measured(*options)
            write_rows(source, rows, 1)
            update, update_mib = measured(*options, "--update")
            reading = reading_seconds(source)
            share = 100 * (update - reading) / whole
            facts = [f"{rows:,}", f"{whole:.0f}", f"{update:.1f}", f"{reading:.1f}", f"{share:.1f} %"]
            lines.append([*facts, whole_mib, update_mib])
    head = ["rows", "run, s", "update, s", "reading, s", "beyond reading, of the run", "run, MiB", "update, MiB"]
    logger.info("%s", table(head, lines))


if __name__ == "__main__":
    main()
