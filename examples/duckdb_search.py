"""DuckDB: exact float32 and its graph (HNSW), bits and bits rescored, the first 256 components; BM25 for words.

    make serve &
    make example NAME=duckdb_search

The SQL is in duckdb.sql, to take away. INSTALL vss and INSTALL fts fetch the extensions where there are no packages.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from examples.client import needs
from examples.sql import parts_of, stored
from examples.temporary import temporary
from examples.trial import WORDS, Question, Search, Stored, Trial, Vectors, run

with needs("duckdb==1.5.5", "duckdb-extension-vss", "duckdb-extension-fts", "pyarrow", "numpy"):
    import duckdb
    import duckdb_extension_fts
    import duckdb_extension_vss
    import numpy as np
    import pyarrow as pa

STATEMENTS, SEARCHES = parts_of("duckdb.sql")


@contextmanager
def opened() -> Iterator[duckdb.DuckDBPyConnection]:
    """Open a database in a temporary folder; a path of yours keeps it."""
    with temporary() as folder, duckdb.connect(str(folder / "vectors.duckdb")) as connection:
        for extension in (duckdb_extension_vss, duckdb_extension_fts):
            [file] = Path(extension.__file__).parent.rglob("*.duckdb_extension")
            connection.execute(f"LOAD '{file}'")
        yield connection


def fill(connection: duckdb.DuckDBPyConnection, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a table for each format, and index one."""
    bits = pa.array([row.tobytes() for row in documents("ubinary")])
    sizes, before = {}, _bytes(connection)
    for part, values in (("floats", documents()), ("cuts", documents(dim=256)), ("bits", bits), ("floats_hnsw", bits)):
        _run(connection, part, values)
        sizes[part], before = _bytes(connection) - before, _bytes(connection)
    return stored(SEARCHES, sizes, partial(_search, connection))


def _run(connection: duckdb.DuckDBPyConnection, part: str, values: pa.Array | np.ndarray) -> None:
    if isinstance(values, np.ndarray):
        values = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    connection.register("rows", pa.table({"id": np.arange(len(values), dtype="i4"), "v": values}))
    for statement in STATEMENTS[part].split(";\n"):
        connection.execute(statement)


def _bytes(connection: duckdb.DuckDBPyConnection) -> int:
    connection.execute("CHECKPOINT")
    [[size]] = connection.execute("SELECT used_blocks * block_size FROM pragma_database_size()").fetchall()
    return int(size)


def _search(connection: duckdb.DuckDBPyConnection, sql: str) -> Search:
    def search(question: Question) -> list[int]:
        bits = np.packbits(question.vector > 0).tobytes()
        values = {"v": str(question.vector.tolist()), "bits": bits, "words": question.words}
        used = {name: value for name, value in values.items() if f"${name}" in sql}  # others are refused
        return [row[0] for row in connection.execute(sql, used).fetchall()]

    return search


def with_words(connection: duckdb.DuckDBPyConnection, trial: Trial) -> Search:
    """Store the texts, and return a search by exact vectors and by words."""
    _run(connection, "words", pa.array(trial.texts()))
    return _search(connection, SEARCHES[WORDS][1])


if __name__ == "__main__":
    run(opened, fill, with_words)
