"""The calls of a load, drawn from a pool of texts whose vectors are known."""

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import encoding
import engine
import weights
from lab.benchmarks.texts import WORDS
from tasks import prompt_for


class Kind(NamedTuple):
    """The least and the most words in a text and texts in a call, and the weight with which the kind is drawn."""

    words: tuple[int, int]
    texts: tuple[int, int]
    weight: int


KINDS = {
    "short": Kind(words=(3, 12), texts=(1, 1), weight=70),
    "medium": Kind(words=(30, 120), texts=(1, 1), weight=12),
    "long": Kind(words=(300, 900), texts=(1, 1), weight=3),
    "many": Kind(words=(3, 30), texts=(2, 32), weight=15),
}
CALLED_TASKS = ("retrieval_document", "retrieval_query", "none")
TEXTS_OF_A_KIND = 200


@dataclass(frozen=True, slots=True)
class LoadCall:
    """The inputs of a call, and the positions of its texts in the pool."""

    kind: str
    inputs: dict[str, Any]
    positions: list[int]


class CallPool:
    """Texts of every kind, each with a task and the vector that an engine computed for it alone."""

    def __init__(self, kinds: Sequence[str], seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._kinds = list(kinds)
        self._texts: list[str] = []
        self._tasks: list[str] = []
        self._positions: dict[tuple[str, str], list[int]] = defaultdict(list)
        for kind in kinds:
            for i in range(TEXTS_OF_A_KIND):
                words = self._random.choices(WORDS, k=self._random.randint(*KINDS[kind].words))
                task = CALLED_TASKS[i % len(CALLED_TASKS)]
                self._positions[kind, task].append(len(self._texts))
                self._texts.append(" ".join(words))
                self._tasks.append(task)
        self._vectors: np.ndarray | None = None

    def compute(self, checkpoint: Path) -> str:
        """Embed every text alone with the engine that a server on this machine has; return its number format."""
        loaded = engine.load(checkpoint, measured=weights.measurements())
        tokenized = loaded.tokenizer.encode([prompt_for(task) for task in self._tasks], self._texts)
        self._vectors = np.concatenate([loaded.embed([text.ids]) for text in tokenized])
        return loaded.number_format

    def draw(self, only_defaults: bool) -> LoadCall:
        """Return a call of a random kind and task; `only_defaults` leaves every other option at its default."""
        kind = self._random.choices(self._kinds, [KINDS[name].weight for name in self._kinds])[0]
        task = self._random.choice(CALLED_TASKS)
        count = self._random.randint(*KINDS[kind].texts)
        positions = self._random.choices(self._positions[kind, task], k=count)
        texts = [self._texts[i] for i in positions]
        inputs: dict[str, Any] = {"texts": texts} if kind == "many" else {"text": texts[0]}
        if not only_defaults:
            inputs |= {
                "embedding_dim": self._random.choice([768, 768, 512, 256, 128]),
                "precision": self._random.choice(["float32", "float32", "float16", "int8", "uint8", "ubinary"]),
                "output_format": self._random.choice(["base64", "base64", "array"]),
                "normalize": self._random.random() < 0.9,
            }
        return LoadCall(kind, inputs if task == "retrieval_document" else inputs | {"task": task}, positions)

    def is_right(self, call: LoadCall, actual: np.ndarray, tolerance: float) -> bool:
        """Whether [n, width] are the call's vectors, with each component of a unit vector within `tolerance`."""
        assert self._vectors is not None
        inputs = call.inputs
        precision = inputs.get("precision", "float32")
        expected = self._vectors[call.positions]
        expected = encoding.cut(expected, inputs.get("embedding_dim", 768), inputs.get("normalize", True))
        if precision == "ubinary":
            wrong = np.unpackbits(actual, axis=1)[:, : expected.shape[1]] != (expected > 0)
            return bool((np.abs(expected[wrong]) <= tolerance * np.abs(expected).max()).all())
        if precision in ("int8", "uint8"):
            steps = np.abs(encoding.convert(expected, precision).astype(int) - actual.astype(int))
            return bool(steps.max() <= 1 + 127 * tolerance)
        scale = np.linalg.norm(expected, axis=1, keepdims=True)
        rounding = 2e-3 if precision == "float16" else 0
        return bool((np.abs(expected - actual) <= scale * tolerance + np.abs(expected) * rounding).all())
