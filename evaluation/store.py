"""Vectors that are computed once and kept on the disk, so that a run that is killed goes on where it was."""

import hashlib
import json
import sqlite3
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.contract import DIMENSIONS
from evaluation.sources import EvaluationError, Source
from texts.chunking import Chunking
from texts.options import prompts_in_texts

# Texts that are computed and then written at once: what is lost at most when the run is killed.
TEXTS_AT_ONCE = 1_024
# Results that are kept in memory: those of one task's queries and documents are asked for once for each row.
REMEMBERED = 4
SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vectors BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS speed (model TEXT PRIMARY KEY, tokens INTEGER NOT NULL, seconds REAL NOT NULL);
"""


class Store:
    """The vectors of one source's texts, computed when they are first asked for."""

    def __init__(self, path: Path, source: Source) -> None:
        """Open the file, or make it. Raises EvaluationError where it is not a store or cannot be written."""
        self.source = source
        self._remembered: OrderedDict[bytes, list[np.ndarray]] = OrderedDict()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path)
            self._database.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise EvaluationError(f"{path}: {error}; name another folder for what is computed") from error

    def embed(self, texts: Sequence[str], titles: Sequence[str | None], task: str) -> np.ndarray:
        """Return the vectors of whole texts, float32 [texts, 768] of unit length."""
        vectors = self.embed_chunks(texts, titles, task, None)
        return np.concatenate(vectors) if vectors else np.empty((0, DIMENSIONS), np.float32)

    def embed_chunks(
        self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None
    ) -> list[np.ndarray]:
        """Return for each text the vectors of its chunks, float32 [chunks, 768]; none of an empty text."""
        settings = [self.source.model, task, *([chunking.chunk, chunking.overlap, chunking.late] if chunking else [])]
        settings += ["ignore"] if prompts_in_texts() == "ignore" else []
        keys = [_digest([*settings, title, text]) for title, text in zip(titles, texts, strict=True)]
        asked = hashlib.sha256(b"".join(keys)).digest()
        if asked not in self._remembered:
            self._compute(keys, texts, titles, task, chunking)
            self._remembered[asked] = [self._read(key) for key in keys]
            if len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(asked)
        return self._remembered[asked]

    def tokens_per_s(self) -> float | None:
        """Return how fast the source has computed its whole texts; None before it has computed anything."""
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
        """Compute and write what is missing, texts of like length together."""
        first = {key: i for i, key in reversed(list(enumerate(keys)))}
        missing = sorted((i for key, i in first.items() if not self._has(key)), key=lambda i: -len(texts[i]))
        with tqdm(total=len(missing), desc=f"embedding, {task}", unit="text", disable=not missing) as bar:
            for start in range(0, len(missing), TEXTS_AT_ONCE):
                batch = missing[start : start + TEXTS_AT_ONCE]
                done = self.source.embed([texts[i] for i in batch], [titles[i] for i in batch], task, chunking)
                starts = np.searchsorted(done.owners, np.arange(len(batch) + 1))
                rows = [
                    (keys[i], done.vectors[starts[j] : starts[j + 1]].astype(np.float32).tobytes())
                    for j, i in enumerate(batch)
                ]
                self._write(rows)
                if chunking is None:
                    self._count(done.tokens, done.seconds)
                bar.update(len(batch))

    def _write(self, rows: Sequence[tuple[bytes, bytes]]) -> None:
        try:
            with self._database:
                self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            raise EvaluationError(f"the computed vectors cannot be written: {error}; make room on the disk") from error

    def _count(self, tokens: int, seconds: float) -> None:
        added = "DO UPDATE SET tokens = tokens + excluded.tokens, seconds = seconds + excluded.seconds"
        with self._database:
            self._database.execute(
                f"INSERT INTO speed VALUES (?, ?, ?) ON CONFLICT (model) {added}", (self.source.model, tokens, seconds)
            )


def _digest(parts: Sequence[object]) -> bytes:
    return hashlib.sha256(json.dumps(parts).encode()).digest()
