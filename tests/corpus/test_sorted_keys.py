"""Keys on the disk: found where they came first, in memory that does not grow with them."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpus import sorted_keys
from corpus.previous import Previous, parquet_parts
from corpus.rows import CorpusError
from corpus.sorted_keys import KEY, DiskArray, Sorted, keys
from tests.support.files import file_size_limit

RANDOM = np.random.default_rng(1)
KINDS: dict[str, Callable[[int], np.ndarray]] = {
    "random": lambda count: np.frombuffer(RANDOM.bytes(16 * count), KEY),
    "ordered": lambda count: keys(pa.chunked_array([pa.array(range(count), pa.int64())])),
    "repeated": lambda count: keys(
        pa.chunked_array([pa.array([f"{i}" for i in RANDOM.integers(0, 50, count).tolist()])])
    ),
    "zeros": lambda count: np.array([b"", b"a", b"a\0b"] * count, KEY)[:count],
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_key_is_found_where_it_came_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setattr(sorted_keys, "SORTED_AT_ONCE", 64)
    monkeypatch.setattr(sorted_keys, "SAMPLED", 8)
    for count in (0, 1, 63, 64, 65, 1000):
        values = KINDS[kind](count)
        on_disk = DiskArray(KEY, tmp_path)
        for begin in range(0, count, 77):
            on_disk.append(values[begin : begin + 77])
        known = Sorted(on_disk, tmp_path)
        _, firsts, places = np.unique(values, return_index=True, return_inverse=True)
        np.testing.assert_array_equal(known.find(values), firsts[places])
        assert (known.find(np.array([b"another", b"~" * 16], KEY)) == -1).all()
        again = [i for i in range(count) if values[i] != b"" and firsts[places[i]] != i]
        assert known.repeated == (again[0] if again else None)
    assert not [*tmp_path.iterdir()], "the files have no names"


def test_an_earlier_outputs_texts_take_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sorted_keys, "SORTED_AT_ONCE", 1 << 12)
    count, at_once = 200_000, 4_000
    hashes = pa.array([i.to_bytes(16, "big") for i in range(count)], pa.binary(16))
    columns = {
        "id": pa.array(range(count)),
        "text_hash": hashes,
        "embedding": pa.array([[0.0]] * count, pa.list_(pa.float32(), 1)),
    }
    table = pa.table(columns).replace_schema_metadata({"model": "small"})
    pq.write_table(table, tmp_path / "v.parquet", row_group_size=at_once)
    parts = {"": parquet_parts(tmp_path / "v.parquet")}
    tracemalloc.start()
    try:
        previous = Previous("v", parts, {"model": "small"}, "", tmp_path)
        even = DiskArray(KEY, tmp_path)
        for begin in range(0, count, at_once):
            assert all(previous.find([value.as_py() for value in hashes[begin : begin + at_once : 97]]))
            even.append(keys(table["id"][begin : begin + at_once])[::2])
        assert sum(table().num_rows for _, table in previous.kept(Sorted(even, tmp_path))) == count // 2
        assert tracemalloc.get_traced_memory()[1] < 8 * count, "72 bytes a row would be 14 MB"
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    with (
        file_size_limit(1000),
        pytest.raises(CorpusError, match="no list of rows can be kept: File too large; make room"),
    ):
        DiskArray(KEY, tmp_path).append(np.zeros(100, KEY))
