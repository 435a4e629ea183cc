"""The stored vectors as mteb's models: an encoder for each size and precision, all from the same vectors.

Besides there are two searches: by documents' binary vectors, with or without rescoring, and by documents' chunks.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ScoringFunction
from mteb.types import PromptType

import encoding
from engine.contract import DIMENSIONS
from engine.tokenizer_config import SECOND_LIMIT
from lab.evaluation.sources import EvaluationError
from lab.evaluation.store import Store
from tasks import PROMPT_NAMES, PROMPTS, TITLED_TASK
from texts.chunking import Chunking
from texts.options import EMBEDDING_DIMS, Options

# How many candidates a vector database rescores for each result.
CANDIDATES_PER_RESULT = 4
# Queries that are compared with all documents at once.
QUERIES_AT_ONCE = 256
MAX_TOKENS = {1: 2_048, 2: SECOND_LIMIT}
"""The limit of each generation's texts."""
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary")


@dataclass(frozen=True, slots=True)
class Form:
    """How vectors are kept: components and number format, and what else a binary search has."""

    embedding_dim: int = DIMENSIONS
    precision: str = "float32"
    queries: str | None = None
    """The queries' precision where it is not the documents'."""
    rescored_by: str | None = None
    """The precision of the documents' vectors that rank what the first search found, against float32 queries."""
    rescored_dim: int | None = None
    """The components of those vectors, where they are more than `embedding_dim`."""

    @property
    def bytes(self) -> int:
        """Bytes of a document's vector, or of both vectors of a rescored form."""
        kept = [(self.embedding_dim, self.precision)]
        if self.rescored_by:
            kept.append((self.rescored_dim or self.embedding_dim, self.rescored_by))
        return sum(
            Options(embedding_dim=dim, precision=precision).width * encoding.WIRE_DTYPES[precision].itemsize
            for dim, precision in kept
        )

    @property
    def name(self) -> str:
        """The form in words."""
        return f"{self.embedding_dim} {self.kind}"

    @property
    def kind(self) -> str:
        """The form in words without its components, the same for all sizes of a kind."""
        queries = f", {self.queries} queries" if self.queries else ""
        dim = f"{self.rescored_dim} " if self.rescored_dim else ""
        rescored = f", rescored by {dim}{self.rescored_by}" if self.rescored_by else ""
        return f"{self.precision}{queries}{rescored}"

    @property
    def experiment(self) -> dict[str, Any]:
        """The form as mteb's results name it; empty for the full vectors."""
        differs: dict[str, Any] = {"embed_dim": self.embedding_dim} if self.embedding_dim != DIMENSIONS else {}
        if self.precision != "float32":
            differs["precision"] = self.precision
        searched = {name: getattr(self, name) for name in ("queries", "rescored_by", "rescored_dim")}
        return differs | {name: value for name, value in searched.items() if value}

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Return float32 [n, 768] as they come back from this form: float32 [n, dim], unit length.

        The precisions keep directions only, and a classifier would notice the lengths that int8 and binary have.
        """
        kept = encoding.convert(encoding.cut(vectors, self.embedding_dim, True), self.precision)
        return encoding.cut(encoding.dequantize(kept, self.precision), self.embedding_dim, True)


FULL = Form()
FORMS = [Form(dim, precision) for precision in PRECISIONS for dim in EMBEDDING_DIMS]
BINARY_SEARCHES = [
    *(Form(dim, "binary", queries) for queries in ("float32", "int8") for dim in EMBEDDING_DIMS),
    *(Form(dim, "binary", rescored_by=by) for by in ("float32", "int8") for dim in EMBEDDING_DIMS),
    # Few bits in memory, all components on disk.
    *(Form(dim, "binary", "float32", by, DIMENSIONS) for by in ("float32", "int8") for dim in (256, 128)),
]


def meta_of(store: Store, experiment: Mapping[str, Any]) -> ModelMeta:
    """Return mteb's description of the model; only models with equal descriptions share results."""
    name = store.source.name
    return ModelMeta.create_empty(
        {
            "name": name if "/" in name else f"local/{name}",
            "revision": store.source.model.partition("@")[2].replace("/", "-"),
            "embed_dim": experiment.get("embed_dim", DIMENSIONS),
            "max_tokens": MAX_TOKENS[store.source.generation],
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": True,
            "experiment_kwargs": dict(experiment) or None,
        }
    )


def task_of(metadata: TaskMetadata, prompt_type: PromptType | None, chosen: Mapping[str, str]) -> str:
    """Return the task whose prompt a text of mteb's task gets: a document's, else by `chosen` or the task's type.

    `chosen` names a task for some of mteb's tasks; the official checkpoint's configuration has a prompt for each type.
    Raises EvaluationError for a type that it does not have.
    """
    if prompt_type is PromptType.document:
        return TITLED_TASK
    if metadata.name in chosen:
        return chosen[metadata.name]
    if metadata.type not in PROMPT_NAMES:
        raise EvaluationError(
            f"{metadata.name}: EmbeddingGemma has no prompt for tasks of type {metadata.type}; choose one of "
            f"{', '.join(PROMPTS)} with --prompts {metadata.name}=..."
        )
    return PROMPT_NAMES[metadata.type]


def read(inputs: Iterable[Mapping[str, Any]], prompt_type: PromptType | None) -> tuple[list[str], list[str | None]]:
    """Return the texts and titles of mteb's batches; of documents the body, as their text begins with the title."""
    texts: list[str] = []
    titles: list[str | None] = []
    for batch in inputs:
        is_titled = prompt_type is PromptType.document and "title" in batch
        texts += batch["body"] if is_titled else batch["text"]
        titles += [title or None for title in batch["title"]] if is_titled else [None] * len(batch["text"])
    return texts, titles


class FormEncoder(AbsEncoder):
    """An encoder for mteb: the vectors in one form."""

    def __init__(self, store: Store, form: Form, chosen: Mapping[str, str], experiment: Mapping[str, Any]) -> None:
        """`chosen` is as `task_of` takes it; `experiment` tells the results from those of other models."""
        self._store, self._form, self._chosen = store, form, chosen
        self.mteb_model_meta = meta_of(store, experiment)

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> np.ndarray:
        """Return float32 [texts, dim] of unit length, under the prompt of mteb's task."""
        texts, titles = read(inputs, prompt_type)
        return self._form.apply(self._store.embed(texts, titles, task_of(task_metadata, prompt_type, self._chosen)))


class Search(ABC):
    """mteb's search model of stored vectors: `index` takes the corpus, `search` the queries."""

    def __init__(self, store: Store, chosen: Mapping[str, str], experiment: Mapping[str, Any]) -> None:
        """`chosen` and `experiment` are as FormEncoder takes them."""
        self._store, self._chosen = store, chosen
        self._encoder = FormEncoder(store, FULL, chosen, experiment)
        self.mteb_model_meta = meta_of(store, experiment)

    def index(self, corpus: Any, *, task_metadata: TaskMetadata, **options: Any) -> None:
        """Embed the documents, a data set with id, text and perhaps title."""
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


class BinarySearch(Search):
    """Documents kept as signs, the best of them perhaps ranked again by vectors of more digits.

    With queries of more digits the score is a product of numbers and signs, else it orders as Hamming distance does.
    """

    def __init__(
        self, store: Store, form: Form, results: int, chosen: Mapping[str, str], experiment: Mapping[str, Any]
    ) -> None:
        """`results` is the number of results that the task's score counts."""
        super().__init__(store, chosen, experiment)
        self._documents = Form(form.embedding_dim, form.precision)
        self._queries = Form(form.embedding_dim, form.queries or form.precision)
        dim = form.rescored_dim or form.embedding_dim
        self._second = (Form(dim), Form(dim, form.rescored_by)) if form.rescored_by else None
        self._candidates = CANDIDATES_PER_RESULT * results

    def keep(self, texts: list[str], titles: list[str | None], task: str) -> None:
        """Keep the documents in the precisions that the search reads."""
        vectors = self._store.embed(texts, titles, task)
        self._signs = self._documents.apply(vectors)
        self._vectors = self._second[1].apply(vectors) if self._second else None

    def rank(self, queries: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Return all documents of each query with their scores, or of a rescored search the candidates."""
        first = self._queries.apply(queries)
        if self._second is None or self._vectors is None:
            return [(np.arange(len(self._signs)), row) for row in first @ self._signs.T]
        best = nearest(first, self._signs, self._candidates)
        second = self._second[0].apply(queries)
        return [(found, self._vectors[found] @ query) for found, query in zip(best, second, strict=True)]


class ChunkSearch(Search):
    """A document is as near as its nearest chunk."""

    def __init__(
        self, store: Store, chunking: Chunking, chosen: Mapping[str, str], experiment: Mapping[str, Any]
    ) -> None:
        super().__init__(store, chosen, experiment)
        self._chunking = chunking

    def keep(self, texts: list[str], titles: list[str | None], task: str) -> None:
        """Keep the vectors of all chunks; an empty document has no chunk and is never found."""
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
    """Return the positions of the `count` documents nearest to each query, [queries, count], nearest first."""
    best = []
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        scores = queries[start : start + QUERIES_AT_ONCE] @ documents.T
        best.append(np.argsort(-scores, axis=1, kind="stable")[:, :count])
    return np.concatenate(best)


def candidate_recall(
    queries: np.ndarray, documents: np.ndarray, embedding_dim: int, results: int, counts: Sequence[int]
) -> list[float]:
    """Return for each count of binary candidates the share of the best `results` by float32 that is among them.

    Both arrays are float32 [n, 768]; the shares are means over the queries.
    """
    full, binary = Form(embedding_dim), Form(embedding_dim, "binary")
    wanted = nearest(full.apply(queries), full.apply(documents), results)
    found = nearest(binary.apply(queries), binary.apply(documents), max(counts))
    return [float(np.mean([np.isin(a, b[:count]) for a, b in zip(wanted, found, strict=True)])) for count in counts]
