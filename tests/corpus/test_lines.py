"""Compressed and .parquet files, whole, damaged and odd: all rows or an error, and never silently fewer rows."""

import asyncio
import bz2
import gzip
import lzma
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from batching.request import Cost
from corpus.asked_file import InputFile
from corpus.lines import DECOMPRESSORS, zstd
from corpus.prediction import embed_file
from corpus.readers import Reader
from corpus.rows import Columns, CorpusError, Row
from engine.packed import PackedEngine
from tests.support.corpora import output_rows, texts
from texts.options import Options

TEXTS = [f"{text} {i * 7919 % 1000}" for i, text in enumerate(texts(400))]
CONTENT = "".join(f"{text}\n" for text in TEXTS).encode()
CHECKED: dict[int, int] = {zstd.CompressionParameter.checksum_flag: 1}
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zstd.compress(content, options=CHECKED),  # as the command does; pyarrow does not
}
PADDING = {".gz": (b"\0", b"\0" * 7), ".xz": (b"\0" * 4, b"\0" * 4096)}
RANDOM = random.Random(1)


def wide_window(content: bytes, log: int) -> bytes:
    compressor = zstd.ZstdCompressor(options={**CHECKED, zstd.CompressionParameter.window_log: log})
    return compressor.compress(content) + compressor.flush()


def read(path: Path, content: bytes) -> list[str] | str:
    """Return the texts of a file with this content, or the error."""
    path.write_bytes(content)
    try:
        return [row.text if isinstance(row, Row) else row.problem for row in Reader(str(path), Columns()).rows()]
    except CorpusError as error:
        return str(error)


def refused(path: Path, content: bytes) -> bool:
    said = read(path, content)
    return isinstance(said, str) and said.startswith(str(path)) and "\n" not in said


def flipped(content: bytes) -> bytes:
    damaged, bit = bytearray(content), RANDOM.randrange(len(content) * 8)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


def test_every_compression_is_tried() -> None:
    assert COMPRESS.keys() == DECOMPRESSORS.keys()


@pytest.mark.parametrize("suffix", DECOMPRESSORS)
def test_all_rows_or_an_error(tmp_path: Path, suffix: str) -> None:
    path, whole = tmp_path / f"a.txt{suffix}", COMPRESS[suffix](CONTENT)
    half = CONTENT.index(b"\n", len(CONTENT) // 2) + 1
    parts = COMPRESS[suffix](CONTENT[:half]), COMPRESS[suffix](CONTENT[half:])
    for content in (whole, parts[0] + parts[1], parts[0] + COMPRESS[suffix](b"") + parts[1]):
        assert read(path, content) == TEXTS
    for padding in PADDING.get(suffix, ()):
        for content in (whole + padding, parts[0] + padding + parts[1] + padding):
            assert read(path, content) == TEXTS
    for end in {1, 2, 5, len(whole) - 1, *(RANDOM.randrange(1, len(whole)) for _ in range(40))}:
        assert refused(path, whole[:end])
        assert end >= len(parts[1]) or refused(path, parts[0] + parts[1][:end])
    for tail in (b"x", b"\0\0\0x", b"text\n" * 100, *([] if suffix == ".gz" else [b"\0" * 3])):
        assert refused(path, whole + tail)
        assert refused(path, parts[0] + tail + parts[1])
    for _ in range(20):
        for content in (flipped(whole), parts[0] + flipped(parts[1])):
            assert refused(path, content) or read(path, content) == TEXTS


def test_zst_of_a_wide_window_is_read_where_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read(tmp_path / "a.txt.zst", wide_window(CONTENT, 27)) == TEXTS
    for log in (28, 31):
        assert "set CORPUS_WINDOW_MB to that of its writer" in read(tmp_path / "a.txt.zst", wide_window(CONTENT, log))
        with monkeypatch.context() as patch:
            patch.setenv("CORPUS_WINDOW_MB", str(1 << log - 20))
            assert read(tmp_path / "a.txt.zst", wide_window(CONTENT, log)) == TEXTS


def test_parquet_gives_all_rows_or_an_error(tmp_path: Path) -> None:
    path, table = tmp_path / "a.parquet", pa.table({"text": TEXTS, "n": range(len(TEXTS))})
    pq.write_table(table, path, write_page_checksum=True, row_group_size=150)
    whole = path.read_bytes()
    assert read(path, whole) == TEXTS
    footer = int.from_bytes(whole[-8:-4], "little") + 8
    for _ in range(12):
        damaged = flipped(whole), whole[:-footer] + flipped(whole[-footer:])
        assert all(refused(path, content) or read(path, content) == TEXTS for content in damaged)
    for end in (RANDOM.randrange(len(whole)) for _ in range(5)):
        assert refused(path, whole[:end])
    assert refused(path, whole + b"\0" * 4)


async def no_vectors(token_ids: Sequence[Sequence[int]], ranges: object) -> tuple[np.ndarray, Cost]:
    return np.ones((len(token_ids), 768), np.float32), Cost(0, 0, 1, 0)


def test_a_predictions_file_gives_all_rows_or_an_error(engine: PackedEngine, tmp_path: Path) -> None:
    for k, (suffix, compress) in enumerate(COMPRESS.items()):
        halves = compress(CONTENT[: CONTENT.index(b"\n") + 1]), compress(CONTENT[CONTENT.index(b"\n") + 1 :])
        joined = halves[0] + PADDING.get(suffix, (b"",))[-1] + halves[1]
        for n, content in enumerate([joined, joined[:-9], halves[0] + b"x" + halves[1], flipped(joined)]):
            path, output = tmp_path / f"{k}{n}.txt{suffix}", tmp_path / f"{k}{n}.jsonl"
            path.write_bytes(content)
            source = InputFile(path, "auto", Columns(), True, "jsonl")
            embedding = embed_file(source, output, Options(), engine.tokenizer, no_vectors, "small")
            if n in (0, 3):  # the last may be whole all the same: a bit of a header that nobody reads
                with suppress(CorpusError):
                    assert asyncio.run(embedding).rows == len(TEXTS)
                    assert [row["id"] for row in output_rows(output)] == list(range(1, len(TEXTS) + 1))
                assert n or output.exists()
            else:
                with pytest.raises(CorpusError, match=r"^file, line \d+: cannot be read further: "):
                    asyncio.run(embedding)
                assert not output.exists()
