"""What a load is made of: texts, the vectors that they must give, and requests drawn from them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import encoding
import engine
from tasks import prompt_for

# Words that the bundled vocabulary knows; what they say does not matter.
WORDS = [
    "the",
    "a",
    "of",
    "and",
    "in",
    "red",
    "small",
    "old",
    "river",
    "house",
    "music",
    "planet",
    "night",
    "garden",
    "city",
    "window",
    "paper",
    "history",
    "winter",
    "language",
    "machine",
    "question",
    "answer",
    "green",
    "open",
    "quiet",
    "between",
    "under",
    "after",
    "before",
    "never",
    "always",
    "seven",
    "travel",
    "carry",
    "remember",
    "write",
    "listen",
    "mountain",
    "bread",
    "doctor",
    "school",
    "market",
    "island",
    "bridge",
    "engine",
    "letter",
]

# Words in a text, texts in a request, and how often such a request comes.
KINDS = {
    "short": ((3, 12), (1, 1), 70),
    "medium": ((30, 120), (1, 1), 12),
    "long": ((300, 900), (1, 1), 3),
    "many": ((3, 30), (2, 32), 15),
}
TASKS = ("retrieval_document", "retrieval_query", "none")
POOL = 200  # texts of each kind


@dataclass(frozen=True, slots=True)
class Work:
    """One request, and the positions of its texts among all."""

    kind: str
    inputs: dict[str, Any]
    positions: list[int]


class Pool:
    """Texts of every kind with a task each, and their vectors by an engine that computed each alone."""

    def __init__(self, kinds: Sequence[str], seed: int = 0) -> None:
        self._random = random.Random(seed)
        self.kinds = list(kinds)
        self.texts: list[str] = []
        self.tasks: list[str] = []
        self._of: dict[tuple[str, str], list[int]] = {}
        for kind in kinds:
            for i in range(POOL):
                words = self._random.choices(WORDS, k=self._random.randint(*KINDS[kind][0]))
                task = TASKS[i % len(TASKS)]
                self._of.setdefault((kind, task), []).append(len(self.texts))
                self.texts.append(" ".join(words))
                self.tasks.append(task)
        self._vectors: np.ndarray | None = None

    def compute(self, directory: Path) -> None:
        """Let the engine on `directory` embed every text by itself."""
        alone = engine.load(directory)
        tokenized = alone.tokenizer.encode([prompt_for(task) for task in self.tasks], self.texts)
        self._vectors = np.concatenate([alone.embed([one.ids]) for one in tokenized])

    def draw(self, plain: bool) -> Work:
        """Return a request of a random kind; a `plain` one has the defaults except for its task."""
        kind = self._random.choices(self.kinds, [KINDS[one][2] for one in self.kinds])[0]
        task = self._random.choice(TASKS)
        count = self._random.randint(*KINDS[kind][1])
        positions = self._random.choices(self._of[kind, task], k=count)
        texts = [self.texts[i] for i in positions]
        inputs: dict[str, Any] = {"text": texts[0]} if kind != "many" else {"texts": texts}
        if plain:
            return Work(kind, inputs if task == "retrieval_document" else inputs | {"task": task}, positions)
        inputs |= {
            "task": task,
            "embedding_dim": self._random.choice([768, 768, 512, 256, 128]),
            "precision": self._random.choice(["float32", "float32", "float16", "int8", "uint8", "ubinary"]),
            "output_format": self._random.choice(["base64", "base64", "array"]),
            "normalize": self._random.random() < 0.9,
        }
        return Work(kind, inputs, positions)

    def is_right(self, work: Work, output: dict[str, Any], tolerance: float) -> bool:
        """Return whether an answer holds these texts' vectors, `tolerance` being that of a unit vector's component."""
        assert self._vectors is not None
        inputs = work.inputs
        precision = inputs.get("precision", "float32")
        known = self._vectors[work.positions]
        known = encoding.cut(known, inputs.get("embedding_dim", 768), inputs.get("normalize", True))
        got = encoding.decode(output)
        got = got.reshape(len(work.positions), -1)
        if precision == "ubinary":
            wrong = np.unpackbits(got, axis=1)[:, : known.shape[1]] != (known > 0)
            return bool((np.abs(known[wrong]) <= tolerance * np.abs(known).max()).all())
        if precision in ("int8", "uint8"):
            return bool(np.abs(encoding.convert(known, precision).astype(int) - got.astype(int)).max() <= 1)
        scale = np.linalg.norm(known, axis=1, keepdims=True)
        rounding = 2e-3 if precision == "float16" else 0
        return bool((np.abs(known - got) <= scale * tolerance + np.abs(known) * rounding).all())
