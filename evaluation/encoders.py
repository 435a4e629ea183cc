"""The stored vectors as mteb's models: for each size and precision an encoder, whose every vector comes of one pass."""

from collections.abc import Iterable, Mapping
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
from evaluation.sources import EvaluationError
from evaluation.store import Store
from tasks import PROMPT_NAMES, PROMPTS, TITLED_TASK
from texts.options import EMBEDDING_DIMS, Options

PRECISIONS = ("float32", "float16", "int8", "uint8", "binary")


@dataclass(frozen=True, slots=True)
class Form:
    """A form in which vectors are kept: components, number format and, where a binary search is rescored, by what."""

    embedding_dim: int = DIMENSIONS
    precision: str = "float32"
    rescored_by: str | None = None

    @property
    def bytes(self) -> int:
        """Bytes of a vector, or of both vectors where it is kept in two precisions."""
        kept = [self.precision, *([self.rescored_by] if self.rescored_by else [])]
        return sum(
            Options(embedding_dim=self.embedding_dim, precision=each).width * encoding.WIRE_DTYPES[each].itemsize
            for each in kept
        )

    @property
    def name(self) -> str:
        """The form in words."""
        rescored = f", rescored by {self.rescored_by}" if self.rescored_by else ""
        return f"{self.embedding_dim} {self.precision}{rescored}"

    @property
    def experiment(self) -> dict[str, Any]:
        """What mteb's results call the form; nothing for the full vectors."""
        differs: dict[str, Any] = {"embed_dim": self.embedding_dim} if self.embedding_dim != DIMENSIONS else {}
        if self.precision != "float32":
            differs["precision"] = self.precision
        return differs | ({"rescored_by": self.rescored_by} if self.rescored_by else {})

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Return what float32 [n, 768] are worth after being kept in this precision: float32 [n, dim], unit length.

        The precisions keep directions, and a classifier would feel the length that int8 and binary happen to have.
        """
        kept = encoding.convert(encoding.cut(vectors, self.embedding_dim, True), self.precision)
        return encoding.cut(encoding.dequantize(kept, self.precision), self.embedding_dim, True)


FULL = Form()
FORMS = [Form(dim, precision) for precision in PRECISIONS for dim in EMBEDDING_DIMS]
RESCORED = [Form(dim, "binary", by) for by in ("float32", "int8") for dim in EMBEDDING_DIMS]


def meta_of(store: Store, experiment: Mapping[str, Any]) -> ModelMeta:
    """Return what mteb writes into its results about the model; only equal ones share results."""
    name = store.source.name
    return ModelMeta.create_empty(
        {
            "name": name if "/" in name else f"local/{name}",
            "revision": store.source.model.partition("@")[2].replace("/", "-"),
            "embed_dim": experiment.get("embed_dim", DIMENSIONS),
            "max_tokens": 2048,
            "similarity_fn_name": ScoringFunction.COSINE,
            "use_instructions": True,
            "experiment_kwargs": dict(experiment) or None,
        }
    )


def task_of(metadata: TaskMetadata, prompt_type: PromptType | None, chosen: Mapping[str, str]) -> str:
    """Return the task whose prompt a text of mteb's task gets: documents theirs, others by `chosen` or the task's type.

    `chosen` names a task for some of mteb's tasks; the types are those of the genuine checkpoint's configuration.
    Raises EvaluationError for a type that is not among these.
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
    """Return the texts and titles of mteb's batches; of documents the body, as mteb's text begins with the title."""
    texts: list[str] = []
    titles: list[str | None] = []
    for batch in inputs:
        is_titled = prompt_type is PromptType.document and "title" in batch
        texts += batch["body"] if is_titled else batch["text"]
        titles += [title or None for title in batch["title"]] if is_titled else [None] * len(batch["text"])
    return texts, titles


class FormEncoder(AbsEncoder):
    """mteb's encoder of the vectors in one form."""

    def __init__(self, store: Store, form: Form, chosen: Mapping[str, str], experiment: Mapping[str, Any]) -> None:
        """`chosen` is as `task_of` takes it, `experiment` what tells the results from those of other models."""
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
