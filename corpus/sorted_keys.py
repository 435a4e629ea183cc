"""Keys of rows on the disk, where as many as there are take no memory: in order, to find where each came first."""

import hashlib
import os
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pyarrow as pa

from corpus.rows import CorpusError
from corpus.sources import reason

KEY_BYTES = 16
KEY = np.dtype(f"S{KEY_BYTES}")
NO_KEYS = np.empty(0, KEY)
# Keys that are sorted in memory, and of these how far apart are the ones that divide all keys for merging.
SORTED_AT_ONCE = 1 << 18
SAMPLED = 1 << 8


def keys(ids: pa.ChunkedArray) -> np.ndarray:
    """Return a key of KEY for each id, equal only for equal ids, and b"" for null."""
    if pa.types.is_integer(ids.type):
        words = np.zeros((len(ids), 2), np.uint64)
        words[:, 0] = ids.fill_null(0).to_numpy().astype(np.uint64)
        words[:, 1] = ids.is_valid().to_numpy()
        return words.view(KEY).reshape(-1)
    if pa.types.is_fixed_size_binary(ids.type):
        whole = ids.fill_null(bytes(KEY_BYTES)).combine_chunks()
        return np.frombuffer(whole.buffers()[1], KEY, len(whole), whole.offset * KEY_BYTES) if len(whole) else NO_KEYS
    return np.array([b"" if value is None else _digest(value) for value in ids.to_pylist()], KEY)


def _digest(value: str) -> bytes:
    return hashlib.blake2b(value.encode(), digest_size=KEY_BYTES).digest()


class DiskArray:
    """An array of one dimension in a file without a name in `folder` (TMPDIR without one), which ends with it."""

    def __init__(self, dtype: np.dtype, folder: Path | None = None) -> None:
        self._dtype, self._length = dtype, 0
        self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  it is closed with the array

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> np.ndarray:
        begin, end, _ = part.indices(self._length)
        size = self._dtype.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), max(end - begin, 0) * size, begin * size), self._dtype)

    def append(self, values: np.ndarray) -> None:
        """Add values at the end. Raises CorpusError on a full disk."""
        data = np.ascontiguousarray(values, self._dtype).view(np.uint8).data
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            raise CorpusError("", f"no list of rows can be kept: {reason(error)}", "make room") from error
        self._length += len(values)

    def mapped(self) -> np.ndarray:
        """Return all values, mapped. Do not keep them: mapped pages count as the process's memory."""
        return np.memmap(self._file, self._dtype, "r") if self._length else np.empty(0, self._dtype)


class Sorted:
    """Distinct keys, each with the position where it came first."""

    repeated: int | None = None
    """The position of a key, not of null, that has been there before."""

    def __init__(self, values: np.ndarray | DiskArray, folder: Path | None = None) -> None:
        """Sort keys of KEY into files in `folder`. Raises CorpusError on a full disk."""
        self._folder = folder
        self._begin()
        ends, samples = [0], [NO_KEYS]
        for begin in range(0, len(values), SORTED_AT_ONCE):
            part = values[begin : begin + SORTED_AT_ONCE]
            samples.append(self._append(part, np.arange(begin, begin + len(part)))[::SAMPLED].copy())
            ends.append(len(self._keys))
        if len(ends) > 2:
            step = SORTED_AT_ONCE // SAMPLED
            self._merge(ends, np.sort(np.concatenate(samples))[step::step])

    def _begin(self) -> None:
        self._keys, self._firsts = DiskArray(KEY, self._folder), DiskArray(np.dtype(np.int64), self._folder)

    def _append(self, values: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Append the distinct keys of `values` in order, and return them."""
        order = np.argsort(values, kind="stable")
        values, positions = values[order], positions[order]
        is_new = np.append(True, values[1:] != values[:-1])
        again = positions[~is_new & (values != b"")]
        if len(again):
            self.repeated = min(int(again.min()), int(again[0]) if self.repeated is None else self.repeated)
        self._keys.append(values[is_new])
        self._firsts.append(positions[is_new])
        return values[is_new]

    def _merge(self, ends: list[int], bounds: np.ndarray) -> None:
        """Sort all runs, which have these `ends`, as one, in parts between the keys `bounds`."""
        keys, firsts = self._keys, self._firsts
        self._begin()
        at = ends[:-1]
        for i in range(len(bounds) + 1):
            mapped, bound = keys.mapped(), bounds[i : i + 1]
            pairs = zip(at, ends[1:], strict=True)
            till = [a + int(np.searchsorted(mapped[a:end], bound)[0]) if len(bound) else end for a, end in pairs]
            parts = [slice(*part) for part in zip(at, till, strict=True)]
            if till != at:
                self._append(*(np.concatenate([array[part] for part in parts]) for array in (keys, firsts)))
            at = till

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """Return the first position of each wanted key, -1 for a key that is not there."""
        keys, firsts = self._keys.mapped(), self._firsts.mapped()
        if not len(keys):
            return np.full(len(wanted), -1)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[at] == wanted, firsts[at], -1)
