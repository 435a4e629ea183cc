"""Vectors computed once and kept on disk, so that a killed run resumes where it was."""

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from cachetools import LRUCache
from tqdm import tqdm

from engine.contract import DIMENSIONS
from lab.evaluation.sources import EvaluationError, Source
from texts.chunking import Chunking
from texts.options import prompts_in_texts

# Texts that are computed, then written together: at most these are lost when the run is killed.
TEXTS_AT_ONCE = 1_024
# Results kept in memory: each row of the tables asks for the same queries and documents.
REMEMBERED = 4
SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vectors BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS speed (model TEXT PRIMARY KEY, tokens INTEGER NOT NULL, seconds REAL NOT NULL);
"""
ADD_SPEED = """
INSERT INTO speed VALUES (?, ?, ?)
ON CONFLICT (model) DO UPDATE SET tokens = tokens + excluded.tokens, seconds = seconds + excluded.seconds
"""


class Store:
    """The vectors of one source's texts, computed when they are first asked for."""

    def __init__(self, path: Path, source: Source) -> None:
        """Open or make the file. Raises EvaluationError if it is not a store or cannot be written."""
        self.source = source
        self._remembered: LRUCache[bytes, list[np.ndarray]] = LRUCache(REMEMBERED)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path)
            self._database.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise EvaluationError(f"{path}: {error}; name another folder with --work") from error

    def embed(self, texts: Sequence[str], titles: Sequence[str | None], task: str) -> np.ndarray:
        """Return the vectors of whole texts, float32 [texts, 768] of unit length."""
        vectors = self.embed_chunks(texts, titles, task, None)
        return np.concatenate(vectors) if vectors else np.empty((0, DIMENSIONS), np.float32)

    def embed_chunks(
        self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None
    ) -> list[np.ndarray]:
        """Return for each text the vectors of its chunks, float32 [chunks, 768]; an empty text has no chunk."""
        settings = [self.source.model, task, *([chunking.chunk, chunking.overlap, chunking.late] if chunking else [])]
        settings += ["ignore"] if prompts_in_texts() == "ignore" else []
        keys = [_digest([*settings, title, text]) for title, text in zip(titles, texts, strict=True)]
        asked = hashlib.sha256(b"".join(keys)).digest()
        if asked not in self._remembered:
            self._compute(keys, texts, titles, task, chunking)
            self._remembered[asked] = [self._read(key) for key in keys]
        return self._remembered[asked]

    def tokens_per_s(self) -> float | None:
        """Return the speed at which the source computed whole texts; None before it has computed any."""
        query = "SELECT tokens / seconds FROM speed WHERE model = ?"
        row = self._database.execute(query, (self.source.model,)).fetchone()
        return row and float(row[0])

    def _read(self, key: bytes) -> np.ndarray:
        [(content,)] = self._database.execute("SELECT vectors FROM vectors WHERE key = ?", (key,))
        return np.frombuffer(content, np.float32).reshape(-1, DIMENSIONS)

    def _has(self, key: bytes) -> bool:
        return self._database.execute("SELECT 1 FROM vectors WHERE key = ?", (key,)).fetchone() is not None

    def _compute(
        self,
        keys: Sequence[bytes],
        texts: Sequence[str],
        titles: Sequence[str | None],
        task: str,
        chunking: Chunking | None,
    ) -> None:
        """Compute and write the missing vectors, texts of similar length together."""
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        missing = sorted((i for key, i in first.items() if not self._has(key)), key=lambda i: -len(texts[i]))
        with tqdm(total=len(missing), desc=f"embedding, {task}", unit="text", disable=not missing) as bar:
            for start in range(0, len(missing), TEXTS_AT_ONCE):
                batch = missing[start : start + TEXTS_AT_ONCE]
                done = self.source.embed([texts[i] for i in batch], [titles[i] for i in batch], task, chunking)
                of_text = np.split(done.vectors, np.searchsorted(done.owners, np.arange(1, len(batch))))
                rows = [(keys[i], part.astype(np.float32).tobytes()) for i, part in zip(batch, of_text, strict=True)]
                self._write(rows, None if chunking else (done.tokens, done.seconds))
                bar.update(len(batch))

    def _write(self, rows: Sequence[tuple[bytes, bytes]], speed: tuple[int, float] | None) -> None:
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
                if speed:
                    self._database.execute(ADD_SPEED, (self.source.model, *speed))
        except sqlite3.Error as error:
            raise EvaluationError(f"the computed vectors cannot be written: {error}; make room on the disk") from error


def _digest(parts: Sequence[object]) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()
