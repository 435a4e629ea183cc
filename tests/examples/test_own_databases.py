"""A reader's own database is used where the environment names it, and keeps nothing that is not announced."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import psycopg
import pytest

from examples import chroma_search, lancedb_search, pgvector_search, redis_search
from examples.temporary import postgres
from examples.trial import Question, Stored
from lab.benchmarks.databases import Documents
from tests.clients.conftest import ROOT


@pytest.fixture(scope="module")
def documents() -> Documents:
    vectors = np.random.default_rng(0).normal(size=(50, 768)).astype("f4")
    return Documents(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def finds(formats: dict[str, Stored], documents: Documents) -> bool:
    """Return whether every format finds a document by its own vector."""
    question = Question("", documents()[7])
    return all(int(next(iter(stored.search(question)))) == 7 for stored in formats.values())


def test_postgres_keeps_no_tables(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    with postgres() as url:
        monkeypatch.setenv("DATABASE_URL", url)
        with pgvector_search.opened() as connection:
            assert finds(pgvector_search.fill(connection, documents), documents)
        with psycopg.connect(url) as connection:
            own = "schemaname NOT IN ('pg_catalog', 'information_schema')"
            assert connection.execute(f"SELECT * FROM pg_tables WHERE {own}").fetchall() == []


def test_redis_keeps_keys_that_expire(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with redis_search.opened() as own:
        monkeypatch.setenv("REDIS_URL", f"unix://{own.connection_pool.connection_kwargs['path']}")
        with redis_search.opened() as client:
            assert finds(redis_search.fill(client, documents), documents)
        keys = own.keys()
        assert {key.partition(b":")[0] for key in keys} == {b"trial"} and all(own.ttl(key) > 0 for key in keys)


def test_chroma_keeps_collections_of_the_trial(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMA_URL", raising=False)
    with chroma_search.opened() as (own, _):
        settings = own.get_settings()
        monkeypatch.setenv("CHROMA_URL", f"http://localhost:{settings.chroma_server_http_port}/")
        for _ in range(2):  # a second run takes the place of the first
            with chroma_search.opened() as database:
                assert finds(chroma_search.fill(database, documents), documents)
        assert {each.name for each in own.list_collections()} == {"trial-768", "trial-256"}


def test_lancedb_keeps_tables_of_the_trial(
    documents: Documents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lancedb_search, "URI", str(tmp_path))
    monkeypatch.setattr(lancedb_search, "FORMATS", {"float32": ("float32", 768, None), "bits": ("ubinary", 768, None)})
    with lancedb_search.opened() as database:
        assert finds(lancedb_search.fill(database, documents), documents)
    assert {path.name for path in tmp_path.iterdir()} == {"trial_float32.lance", "trial_bits.lance"}


def test_the_example_of_a_qdrant_server_runs(url: str) -> None:
    page = (ROOT / "docs" / "databases.md").read_text(encoding="utf-8")
    [source] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    source = source.replace('"http://localhost:6333"', '":memory:"')
    command = [sys.executable, "-c", source]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"URL": url}, capture_output=True, text=True, timeout=120
    )
    assert result.stdout.startswith("money for a chronic shortage of funds\n"), result.stderr
