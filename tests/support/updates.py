"""Rows of two days, runs that embed them, and whether two outputs are the same."""

import re
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from scripts import embed_corpus
from tests.support.corpora import texts

Rows = list[dict[str, Any]]
ROWS: Rows = [
    {"id": f"k{i}", "text": text, "url": f"u{i}", "dt": f"2024-0{1 + i // 24}"} for i, text in enumerate(texts(60))
]


def changed(rows: Rows) -> Rows:
    """Return rows of which one has another text, one another url, one another day, one is gone, and one is new."""
    after = [dict(row) for row in rows]
    after[7]["text"], after[50]["url"] = "another text", "another url"
    after[20]["dt"] = "2024-03"
    del after[35]
    return [*after, {"id": "new", "text": "a new text", "url": "u", "dt": "2024-03"}]


class Runs:
    """Runs of `scripts.embed_corpus` in this process, of rows that are written into a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
        self._source, self._monkeypatch, self._caplog = folder / "rows.parquet", monkeypatch, caplog
        caplog.set_level("INFO")

    def __call__(self, rows: Rows, output: str, *options: str) -> str:
        """Return how many rows and texts were computed, or what else the run said at its end."""
        pq.write_table(pa.Table.from_pylist(rows), self._source)
        arguments = [str(self._source), output, "--weights", "small", "--id", "id", "--window", "16", *options]
        arguments += ["--file-mb", "1"] if output.endswith("/") else []
        self._monkeypatch.setattr("sys.argv", ["embed_corpus", *arguments])
        try:
            embed_corpus.main()
        except SystemExit as ended:
            return str(ended.code)
        said = self._caplog.messages[-1]
        counts = re.search(r": ([0-9,]+ rows), .* ([0-9,]+) texts computed", said)
        return f"{counts[1]}, {counts[2]} computed" if counts else said


def read(path: str) -> pa.Table:
    """Return an output of this machine."""
    if path.endswith(".lance"):
        return lance.dataset(path).to_table()
    return pa.ipc.open_file(path).read_all() if path.endswith(".arrow") else pq.read_table(path)


def same(one: pa.Table, other: pa.Table) -> None:
    """Assert that two outputs have the same rows: equal but for the vectors' last digits."""
    assert one.schema.equals(other.schema, check_metadata=True)
    for name in one.schema.names:
        if name != "embedding":
            assert one[name].equals(other[name]), name
    vectors, expected = (np.stack(table["embedding"].to_numpy()).astype(np.float64) for table in (one, other))
    step = 1 if one["embedding"].type.value_type == pa.int8() else 1e-6
    np.testing.assert_allclose(vectors, expected, atol=step)
