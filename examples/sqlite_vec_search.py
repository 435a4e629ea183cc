"""SQLite with sqlite-vec: float32, int8, bits and bits rescored, the first 256 components; FTS5 for words.

    make serve &
    make example NAME=sqlite_vec_search

The SQL is in sqlite_vec.sql, to take away. sqlite-vec has no index: a search reads every vector, and is exact.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial

from examples.client import needs
from examples.sql import parts_of, stored
from examples.trial import WORDS, Question, Search, Stored, Trial, Vectors, run

with needs("pysqlite3-binary", "sqlite-vec", "numpy"):  # many Pythons' own sqlite3 loads no extensions
    import numpy as np
    import sqlite_vec
    from pysqlite3 import dbapi2 as sqlite3

STATEMENTS, SEARCHES = parts_of("sqlite_vec.sql")
# For each table what the server is asked for, and the function that takes its bytes.
VALUES = {
    "floats": (("float32", 768), "vec_f32"),
    "int8s": (("int8", 768), "vec_int8"),
    "bits": (("ubinary", 768), "vec_bit"),
    "cuts": (("float32", 256), "vec_f32"),
}


@contextmanager
def opened() -> Iterator[sqlite3.Connection]:
    """Open a database in memory; a path in place of :memory: keeps it."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        connection.executescript(STATEMENTS["tables"])
        yield connection


def fill(connection: sqlite3.Connection, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a table for each format."""
    sizes, size = {}, "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    for table, (what, take) in VALUES.items():
        [before] = connection.execute(size).fetchone()
        rows = enumerate(row.tobytes() for row in documents(*what))
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO {table} (rowid, v) VALUES (?, {take}(?))", rows)
        connection.execute("COMMIT")
        sizes[table] = connection.execute(size).fetchone()[0] - before
    return stored(SEARCHES, sizes, partial(_search, connection))


def _search(connection: sqlite3.Connection, sql: str) -> Search:
    def search(question: Question) -> list[int]:
        int8 = np.rint(question.vector * (127 / np.abs(question.vector).max())).astype("i1")  # as the server does
        words = " OR ".join(f'"{word}"' for word in question.words.replace('"', " ").split())
        values = {"v": question.vector, "int8": int8, "bits": np.packbits(question.vector > 0), "words": words}
        return [row[0] for row in connection.execute(sql, values)]

    return search


def with_words(connection: sqlite3.Connection, trial: Trial) -> Search:
    """Store the texts, and return a search by exact vectors and by words."""
    connection.executemany("INSERT INTO texts (rowid, text) VALUES (?, ?)", enumerate(trial.texts()))
    return _search(connection, SEARCHES[WORDS][1])


if __name__ == "__main__":
    run(opened, fill, with_words)
