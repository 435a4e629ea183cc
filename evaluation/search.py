"""Two searches as mteb's search models: binary vectors with rescoring, and documents in chunks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from evaluation.encoders import FULL, Form, FormEncoder, meta_of, task_of
from evaluation.store import Store
from texts.chunking import Chunking

# A vector database rescores so many times the results that were asked for.
CANDIDATES_PER_RESULT = 4
# Queries that are compared with all documents at once.
QUERIES_AT_ONCE = 256


class Search(ABC):
    """mteb's search model of stored vectors: `index` takes the corpus, `search` the queries."""

    def __init__(self, store: Store, chosen: Mapping[str, str], experiment: Mapping[str, Any]) -> None:
        """`chosen` and `experiment` are as FormEncoder takes them."""
        self._store, self._chosen = store, chosen
        self._encoder = FormEncoder(store, FULL, chosen, experiment)
        self.mteb_model_meta = meta_of(store, experiment)

    def index(self, corpus: Any, *, task_metadata: TaskMetadata, **options: Any) -> None:
        """Embed the documents, a data set of id, text and, where there are any, title."""
        self._ids = list(corpus["id"])
        self.keep(*texts_of(corpus), task_of(task_metadata, PromptType.document, self._chosen))

    def search(self, queries: Any, *, top_k: int, **options: Any) -> dict[str, dict[str, float]]:
        """Return the best documents of each query with their scores."""
        asked = {name: options[name] for name in ("task_metadata", "hf_split", "hf_subset")}
        batch = [{"text": list(queries["text"])}]
        vectors = self._encoder.encode(batch, prompt_type=PromptType.query, **asked)
        found: dict[str, dict[str, float]] = {}
        for start in range(0, len(vectors), QUERIES_AT_ONCE):
            ranked = self.rank(vectors[start : start + QUERIES_AT_ONCE])
            for name, (positions, scores) in zip(queries["id"][start : start + QUERIES_AT_ONCE], ranked, strict=True):
                best = np.argsort(-scores, kind="stable")[:top_k]
                found[name] = {
                    self._ids[i]: float(score) for i, score in zip(positions[best], scores[best], strict=True)
                }
        return found

    @abstractmethod
    def keep(self, texts: list[str], titles: list[str | None], task: str) -> None:
        """Keep the documents' vectors."""

    @abstractmethod
    def rank(self, queries: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Return for each query, float32 [768], positions of documents and their scores."""


class RescoringSearch(Search):
    """The best by Hamming distance, put in order by vectors of more digits, as vector databases do it.

    The queries stay float32 in the second step; only documents are kept in fewer digits.
    """

    def __init__(
        self, store: Store, form: Form, results: int, chosen: Mapping[str, str], experiment: Mapping[str, Any]
    ) -> None:
        """`results` are as many as the task's score counts."""
        super().__init__(store, chosen, experiment)
        self._full = Form(form.embedding_dim)
        self._binary = Form(form.embedding_dim, "binary")
        self._kept = Form(form.embedding_dim, form.rescored_by or "float32")
        self._candidates = CANDIDATES_PER_RESULT * results

    def keep(self, texts: list[str], titles: list[str | None], task: str) -> None:
        """Keep the documents in both precisions."""
        vectors = self._store.embed(texts, titles, task)
        self._signs, self._vectors = self._binary.apply(vectors), self._kept.apply(vectors)

    def rank(self, queries: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Return the candidates of each query and their cosines."""
        best = nearest(self._binary.apply(queries), self._signs, self._candidates)
        return [
            (found, self._vectors[found] @ query) for found, query in zip(best, self._full.apply(queries), strict=True)
        ]


class ChunkSearch(Search):
    """A document is as near as the nearest of its chunks."""

    def __init__(
        self, store: Store, chunking: Chunking, chosen: Mapping[str, str], experiment: Mapping[str, Any]
    ) -> None:
        super().__init__(store, chosen, experiment)
        self._chunking = chunking

    def keep(self, texts: list[str], titles: list[str | None], task: str) -> None:
        """Keep the vectors of all chunks; an empty document has none and is never found."""
        chunks = self._store.embed_chunks(texts, titles, task, self._chunking)
        counts = np.array([len(each) for each in chunks])
        self._documents = np.flatnonzero(counts)
        self._starts = np.cumsum([0, *counts[self._documents]])[:-1]
        self._vectors = np.concatenate(chunks)

    def rank(self, queries: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Return all documents with the largest cosine of their chunks."""
        scores = np.maximum.reduceat(queries @ self._vectors.T, self._starts, axis=1)  # [queries, documents]
        return [(self._documents, row) for row in scores]


def texts_of(corpus: Any) -> tuple[list[str], list[str | None]]:
    """Return the texts and titles of a data set of documents."""
    titles = corpus["title"] if "title" in corpus.column_names else [None] * len(corpus)
    return list(corpus["text"]), [title or None for title in titles]


def nearest(queries: np.ndarray, documents: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the documents with the largest products with each query, [queries, count], best first."""
    best = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        scores = queries[start : start + QUERIES_AT_ONCE] @ documents.T
        best.append(np.argsort(-scores, axis=1, kind="stable")[:, :count])
    return np.concatenate(best)


def candidate_recall(
    queries: np.ndarray, documents: np.ndarray, embedding_dim: int, results: int, counts: Sequence[int]
) -> list[float]:
    """Return for each count of candidates how many of the best `results` by float32 are among the binary candidates.

    Both arrays are float32 [n, 768]; the shares are means over the queries.
    """
    full, binary = Form(embedding_dim), Form(embedding_dim, "binary")
    wanted = nearest(full.apply(queries), full.apply(documents), results)
    found = nearest(binary.apply(queries), binary.apply(documents), max(counts))
    return [float(np.mean([np.isin(a, b[:count]) for a, b in zip(wanted, found, strict=True)])) for count in counts]
