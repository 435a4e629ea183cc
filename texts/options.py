"""How texts are embedded: task, dimensions, normalisation, precision, truncation and chunking."""

from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np

import encoding
import settings
from engine.tokenizer import Truncate
from tasks import PROMPTS, TITLED_TASK
from texts.chunking import MIN_CHUNK_STEP, Chunking

EMBEDDING_DIMS = (768, 512, 256, 128)


def prompts_in_texts() -> str:
    """Return the variable PROMPTS_IN_TEXTS: `use` (the default) the prompt that a text begins with, or `ignore` it.

    Raises ValueError for anything else.
    """
    value = settings.text("PROMPTS_IN_TEXTS") or "use"
    check_choice("PROMPTS_IN_TEXTS", value, ("use", "ignore"))
    return value


@dataclass(frozen=True, slots=True)
class Options:
    """How texts are embedded. Raises ValueError, naming the field and its choices, for any other value."""

    task: str | None = None
    """None means the task whose prompt a text begins with, else `default_task`."""
    embedding_dim: int = 768
    normalize: bool = True
    precision: str = "float32"
    truncate: Truncate = "end"
    chunking: Chunking | None = None
    max_tokens: int | None = None
    """A limit of tokens, prompt included, below the model's; for texts that are not chunked."""
    default_task: str = TITLED_TASK
    own_prompts: bool = field(default_factory=lambda: prompts_in_texts() == "use")
    """Whether a text that begins with one of the model's prompts gets no second one."""

    def __post_init__(self) -> None:
        check_choice("task", self.prompt_task, PROMPTS)
        check_choice("embedding_dim", self.embedding_dim, EMBEDDING_DIMS)
        check_choice("precision", self.precision, encoding.WIRE_DTYPES)
        check_choice("truncate", self.truncate, get_args(Truncate))

    @property
    def prompt_task(self) -> str:
        """The task of texts that do not begin with a prompt."""
        return self.default_task if self.task is None else self.task

    @property
    def width(self) -> int:
        """Numbers in a vector: an eighth of the dimensions where a byte packs eight signs."""
        return self.embedding_dim // 8 if self.precision in ("binary", "ubinary") else self.embedding_dim

    @property
    def late_chunking(self) -> bool:
        """Whether the model reads neighbouring chunks together."""
        return self.chunking is not None and self.chunking.late

    def finish(self, vectors: np.ndarray) -> np.ndarray:
        """Cut, normalise and convert an engine's vectors: float32 [n, 768] to [n, width] of the precision."""
        return encoding.convert(encoding.cut(vectors, self.embedding_dim, self.normalize), self.precision)

    def described(self) -> dict[str, str]:
        """Return the options as strings, for the metadata of a file of vectors."""
        facts = {
            "task": self.prompt_task,
            "dimensions": self.embedding_dim,
            "precision": self.precision,
            "normalized": self.normalize,
            "truncate": self.truncate,
            "prompts_in_texts": "ignored" if not self.own_prompts else "any task" if self.task is None else "this task",
        }
        if self.chunking:
            facts |= {"chunk": self.chunking.chunk, "overlap": self.chunking.overlap, "late": self.chunking.late}
        return {name: str(value).lower() for name, value in facts.items()}


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise ValueError, naming the field and the choices, for any other value."""
    if value not in choices:
        raise ValueError(f"{name}: {value!r:.80} is unknown; use one of {', '.join(map(str, choices))}")


def chunking_of(chunk: int | None, overlap: int, late_chunking: bool) -> Chunking | None:
    """Return how long texts are cut, None if they are not. Raises ValueError for inputs that do not fit together."""
    if chunk is None:
        if overlap or late_chunking:
            name = "overlap" if overlap else "late_chunking"
            raise ValueError(f"{name}: it needs 'chunk'; give the tokens of a chunk")
        return None
    chunking = Chunking(chunk, overlap, late_chunking)
    if chunk - overlap < MIN_CHUNK_STEP:
        raise ValueError(
            f"chunk, overlap: a chunk would begin every {chunk - overlap} tokens; make chunk at least {MIN_CHUNK_STEP} "
            "more than overlap"
        )
    return chunking
