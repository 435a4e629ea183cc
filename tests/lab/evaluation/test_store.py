"""The store: each vector is computed once, and neither the end of a run nor a full disk loses what was computed."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import lab.evaluation.store
from lab.evaluation.sources import Answer, EngineSource, EvaluationError
from lab.evaluation.store import Store
from texts.chunking import Chunking

pytestmark = pytest.mark.evaluation

TEXTS = [f"{'word ' * (i % 7 + 1)}{i}" for i in range(40)]
NO_TITLES = [None] * len(TEXTS)


class Counted:
    """A source that counts what it is asked for, and can be told to fail."""

    def __init__(self, source: EngineSource, model: str | None = None) -> None:
        self._source, self.name, self.model = source, source.name, model or source.model
        self.generation = source.generation
        self.asked: list[str] = []
        self.left = 1_000

    def embed(self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None) -> Answer:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        self.asked += texts
        return self._source.embed(texts, titles, task, chunking)


@pytest.fixture
def counted(source: EngineSource, monkeypatch: pytest.MonkeyPatch) -> Counted:
    monkeypatch.setattr(lab.evaluation.store, "TEXTS_AT_ONCE", 8)
    return Counted(source)


def test_vectors_are_those_of_the_source_in_order(counted: Counted, source: EngineSource, tmp_path: Path) -> None:
    got = Store(tmp_path / "a.sqlite", counted).embed(TEXTS, NO_TITLES, "clustering")
    expected = source.embed(TEXTS, NO_TITLES, "clustering", None).vectors
    assert np.abs(got - expected).max() < 1e-6


def test_prompts_that_are_ignored_make_other_vectors(
    counted: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, own = Store(tmp_path / "a.sqlite", counted), ["task: clustering | query: one"]
    used = store.embed(own, [None], "clustering")
    monkeypatch.setenv("PROMPTS_IN_TEXTS", "ignore")
    assert np.abs(store.embed(own, [None], "clustering") - used).max() > 1e-3


def test_a_text_is_computed_once_for_each_task_and_title(counted: Counted, tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", counted)
    store.embed([*TEXTS, *TEXTS], [*NO_TITLES, *NO_TITLES], "clustering")
    assert sorted(counted.asked) == sorted(TEXTS)
    store.embed(TEXTS, NO_TITLES, "clustering")
    Store(tmp_path / "a.sqlite", counted).embed(TEXTS[::-1], NO_TITLES, "clustering")
    assert len(counted.asked) == len(TEXTS)
    store.embed(TEXTS[:1], NO_TITLES[:1], "retrieval_query")
    store.embed(TEXTS[:1], ["a title"], "retrieval_document")
    store.embed(TEXTS[:1], [None], "retrieval_document")
    store.embed_chunks(TEXTS[:1], [None], "retrieval_document", Chunking(32))
    assert counted.asked[len(TEXTS) :] == TEXTS[:1] * 4


def test_other_weights_do_not_get_these_vectors(counted: Counted, source: EngineSource, tmp_path: Path) -> None:
    Store(tmp_path / "a.sqlite", counted).embed(TEXTS[:3], NO_TITLES[:3], "clustering")
    other = Counted(source, "small@sha256:other+float32")
    Store(tmp_path / "a.sqlite", other).embed(TEXTS[:3], NO_TITLES[:3], "clustering")
    assert len(other.asked) == 3


def test_what_was_computed_before_the_end_is_not_computed_again(counted: Counted, tmp_path: Path) -> None:
    counted.left = 3
    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path / "a.sqlite", counted).embed(TEXTS, NO_TITLES, "clustering")
    assert len(counted.asked) == 24
    counted.left = 1_000
    Store(tmp_path / "a.sqlite", counted).embed(TEXTS, NO_TITLES, "clustering")
    assert sorted(counted.asked) == sorted(TEXTS)


def test_chunks_belong_to_their_texts_and_an_empty_text_has_none(counted: Counted, tmp_path: Path) -> None:
    texts = ["one two three. " * 60, "", "four five six. " * 20]
    chunks = Store(tmp_path / "a.sqlite", counted).embed_chunks(texts, [None] * 3, "retrieval_document", Chunking(64))
    assert len(chunks[0]) > len(chunks[2]) > 1 and len(chunks[1]) == 0
    alone = counted.embed(texts[2:], [None], "retrieval_document", Chunking(64)).vectors
    assert np.abs(chunks[2] - alone).max() < 1e-6


def test_a_full_disk_is_said_so_and_loses_nothing(counted: Counted, tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", counted)
    [[pages]] = store._database.execute("PRAGMA page_count")
    store._database.execute(f"PRAGMA max_page_count = {pages + 20}")
    with pytest.raises(EvaluationError, match="cannot be written: database or disk is full; make room on the disk"):
        store.embed(TEXTS, NO_TITLES, "clustering")
    kept = len(sqlite3.connect(tmp_path / "a.sqlite").execute("SELECT key FROM vectors").fetchall())
    assert 0 < kept < len(TEXTS)
    counted.asked.clear()
    Store(tmp_path / "a.sqlite", counted).embed(TEXTS, NO_TITLES, "clustering")
    assert len(counted.asked) == len(TEXTS) - kept


def test_a_file_that_is_no_store_is_refused(counted: Counted, tmp_path: Path) -> None:
    (tmp_path / "a.sqlite").write_text("no database\n" * 100)
    with pytest.raises(EvaluationError, match=r"a\.sqlite: file is not a database; name another folder with --work"):
        Store(tmp_path / "a.sqlite", counted)


def test_the_speed_is_of_whole_texts(counted: Counted, tmp_path: Path) -> None:
    store = Store(tmp_path / "a.sqlite", counted)
    assert store.tokens_per_s() is None
    store.embed(TEXTS, NO_TITLES, "clustering")
    before = store.tokens_per_s()
    assert before is not None and before > 0
    store.embed_chunks(TEXTS, NO_TITLES, "clustering", Chunking(32))
    assert store.tokens_per_s() == before
