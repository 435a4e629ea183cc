"""Proves that an engine computes what its checkpoint should, by canary texts with known token ids and vectors."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from engine import memory
from engine.contract import DIMENSIONS, Engine
from tasks import PROMPT_NAMES, SECOND_PROMPT_NAMES, prompt_for, prompts_of

# Relative errors |a - b| / |b|. Summing float32 in another order costs 1e-6; bfloat16 through 24 layers costs 1.4e-2,
# which is 1e-4 in 1 - cosine, so 4.5e-2 (1e-3) leaves room for other kernels. 8 bits cost twice what bfloat16 does, and
# more with large channels, so they get 0.1 (5e-3); that their sums are right is compared to the bit at every load.
FLOAT32_ERROR = 2e-5
COARSE_ERROR = 4.5e-2
INT8_ERROR = 0.1
REFERENCE_TEXTS = {
    "multilingual": ("clustering", "Brücke über den Fluss. 一座绿色的桥。 جسر فوق النهر. Мост через реку."),
    # At least 514 tokens, of which the first and the last are out of sight of each other.
    "past the window": ("retrieval_document", "".join(f"Report {i} is about the bridge, again. " for i in range(55))),
}
"""Texts that are compared with sentence-transformers: name -> (task, text)."""
# A file has some tens of canaries; each adds milliseconds to a start.
MAX_CANARIES, MAX_CANARY_CHARS = 256, 100_000


class SelfCheckError(RuntimeError):
    """An engine, or its checkpoint, that is not what it should be; says what differs, and by how much."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A text with its task, and what is known of its token ids and of its vector before the normalisation."""

    name: str
    task: str
    text: str
    token_ids: list[int] | None = None
    vector: np.ndarray | None = None  # float32 [768]
    norm: float | None = None
    leading: list[float] | None = None  # of the unit vector


@dataclass(frozen=True, slots=True)
class Canaries:
    """What a checkpoint must compute, and the source of that knowledge."""

    origin: str
    prompts: dict[str, str]
    texts: list[Canary]
    cosines: list[tuple[str, str, float]]
    slack: float
    """Allowed on top of an engine's own error, as quoted figures are rounded and from another implementation."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, by how much it differs, and how much is allowed."""

    what: str
    difference: float
    allowed: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether the difference is allowed; NaN never is."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        if self.detail:
            return f"{self.what} {self.detail}"
        return f"{self.what} is off by {self.difference:.3g}, {self.allowed:.3g} allowed"


def check(engine: Engine, directory: Path, canaries: Path | None) -> str:
    """Return in words what was compared. Raises SelfCheckError naming which comparisons fail, and by how much."""
    comparisons = compare_prompts(directory, engine.tokenizer.generation)
    if canaries is not None:
        expected: Canaries | str = read(canaries)
    else:
        second = engine.tokenizer.generation == 2
        expected = by_reference(engine, directory) if second else "there is no canaries.json beside it"
    if isinstance(expected, str):
        result = f"its prompts are right; its vectors were not compared, as {expected}"
    else:
        comparisons += compare_engine(engine, expected)
        result = f"{len(comparisons)} comparisons with {expected.origin} hold"
    failed = [str(comparison) for comparison in comparisons if not comparison.ok]
    if failed:
        raise SelfCheckError(
            f"{directory}: {len(failed)} of {len(comparisons)} self-checks failed: {'; '.join(failed[:4])[:600]}; "
            "fetch the checkpoint again, or use the checkpoint that this file of canaries was written for"
        )
    return result


def by_reference(engine: Engine, directory: Path) -> Canaries | str:
    """Return what sentence-transformers computes in float32 of some texts, or in words why it cannot and a remedy.

    For EmbeddingGemma 2, as long as no vectors of the official weights are known. It takes seconds, and the memory of a
    second model.
    """
    remedy = (
        "record known vectors once where it can run: python -m scripts.fetch_weights NAME --record for a repository, "
        "python -m scripts.verify --write DIR for a directory"
    )
    if short := memory.shortage_for_reference(directory):
        return f"sentence-transformers takes {short}; {remedy}"
    try:
        from engine.reference import ReferenceEngine
    except ImportError:
        return f"sentence-transformers is not installed; {remedy}"
    prompts = [prompt_for(task, None, engine.tokenizer.generation) for task, _ in REFERENCE_TEXTS.values()]
    token_ids = [text.ids for text in engine.tokenizer.encode(prompts, [text for _, text in REFERENCE_TEXTS.values()])]
    reference = ReferenceEngine(directory, "cpu", "float32", engine.tokenizer)
    vectors = np.concatenate([reference.embed([ids]) for ids in token_ids])  # together they would be padded
    texts = [
        Canary(name, task, text, list(ids), vector)
        for (name, (task, text)), ids, vector in zip(REFERENCE_TEXTS.items(), token_ids, vectors, strict=True)
    ]
    return Canaries("sentence-transformers, as no vectors of it are known,", {}, texts, [], 0.0)


def compare_prompts(directory: Path, generation: int = 1) -> list[Comparison]:
    """Compare the prompts in the checkpoint's config with ours."""
    path = directory / "config_sentence_transformers.json"
    if not path.is_file():
        return []
    try:
        prompts = dict(json.loads(path.read_text(encoding="utf-8")).get("prompts") or {})
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise SelfCheckError(f"{path}: no object with prompts ({repr(error)[:200]}); fetch it again") from error
    names = PROMPT_NAMES if generation == 1 else SECOND_PROMPT_NAMES
    return [
        _compare_equal(f"prompt {name!r} in {path.name}", prompt, prompt_for(names[name], None, generation))
        for name, prompt in prompts.items()
        if name in names
    ]


def compare_engine(engine: Engine, expected: Canaries) -> list[Comparison]:
    """Compare the prompts, token ids and vectors of the canaries with the engine's."""
    generation = engine.tokenizer.generation
    prompts = [prompt_for(canary.task, None, generation) for canary in expected.texts]
    tokenized = engine.tokenizer.encode(prompts, [canary.text for canary in expected.texts])
    token_ids = [text.ids for text in tokenized]
    comparisons = [
        _compare_equal(f"prompt of {task}", prompts_of(generation).get(task), prompt)
        for task, prompt in expected.prompts.items()
    ]
    comparisons += [
        _compare_equal(f"token ids of {canary.name!r}", list(ids), canary.token_ids)
        for canary, ids in zip(expected.texts, token_ids, strict=True)
        if canary.token_ids is not None
    ]
    vectors = engine.embed(token_ids)
    shape = (len(token_ids), DIMENSIONS)
    if vectors.shape != shape:
        return [*comparisons, _compare_equal("shape of the vectors", vectors.shape, shape)]
    return comparisons + compare_vectors(vectors, expected, allowed_error(engine.number_format))


def allowed_error(number_format: str) -> float:
    """Return the relative error that a number format may cause in a vector."""
    return {"float32": FLOAT32_ERROR, "int8": INT8_ERROR}.get(number_format, COARSE_ERROR)


def compare_vectors(vectors: np.ndarray, expected: Canaries, error: float) -> list[Comparison]:
    """Compare float32 [n, 768] before the normalisation with the canaries', allowing a relative `error`."""
    comparisons = []
    allowed = error + expected.slack
    units = {}
    for canary, vector in zip(expected.texts, vectors, strict=True):
        norm = float(np.linalg.norm(vector))
        units[canary.name] = vector / norm
        if canary.vector is not None:
            difference = float(np.linalg.norm(vector - canary.vector) / np.linalg.norm(canary.vector))
            comparisons.append(Comparison(f"vector of {canary.name!r}", difference, allowed))
        if canary.norm is not None:
            comparisons.append(Comparison(f"norm of {canary.name!r}", abs(norm / canary.norm - 1), allowed))
        if canary.leading is not None:
            difference = float(np.abs(units[canary.name][: len(canary.leading)] - canary.leading).max())
            comparisons.append(Comparison(f"leading components of {canary.name!r}", difference, allowed))
    for a, b, cosine in expected.cosines:
        difference = abs(float(units[a] @ units[b]) - cosine)
        comparisons.append(Comparison(f"cosine of {a!r} and {b!r}", difference, allowed))
    return comparisons


def _compare_equal(what: str, actual: object, expected: object) -> Comparison:
    if actual == expected:
        return Comparison(what, 0, 0)
    if isinstance(actual, list) and isinstance(expected, list):
        pairs = enumerate(zip(actual, expected, strict=False))
        position = next((i for i, (a, b) in pairs if a != b), min(len(actual), len(expected)))
        detail = f"are {len(actual)}, expected {len(expected)}, and differ from position {position} on"
        return Comparison(what, 1, 0, detail)
    return Comparison(what, 1, 0, f"is {repr(actual)[:200]}, expected {repr(expected)[:200]}")


def read(path: Path) -> Canaries:
    """Return the canaries in a JSON file. Raises SelfCheckError if it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        texts = [_canary(canary) for canary in content["canaries"][:MAX_CANARIES]]
        names = {canary.name for canary in texts}
        cosines = [(a, b, float(cosine)) for a, b, cosine in content["cosines"] if {a, b} <= names]
        origin = str(content["origin"])[:200]
        return Canaries(origin, dict(content["prompts"]), texts, cosines, float(content["slack"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SelfCheckError(
            f"{path}: not a file of canaries ({repr(error)[:200]}); write it again with scripts/verify.py --write"
        ) from error


def _canary(content: dict[str, Any]) -> Canary:
    """Return a canary. Raises ValueError, TypeError or KeyError unless its fields can be compared."""
    canary = Canary(**content)
    prompt_for(canary.task)
    if not all(isinstance(text, str) and len(text) <= MAX_CANARY_CHARS for text in (canary.name[:200], canary.text)):
        raise ValueError(f"its name and text are strings, of at most {MAX_CANARY_CHARS:,} characters")
    known = ([] if each is None else each for each in (canary.token_ids, canary.leading))
    for numbers in (*known, [1 if canary.norm is None else canary.norm]):
        if not (isinstance(numbers, list) and all(type(n) in (int, float) and abs(n) < 1e20 for n in numbers)):
            raise ValueError("its token ids and leading components are lists of numbers, and its norm is a number")
    if (canary.norm is not None and not canary.norm > 0) or len(canary.leading or []) > DIMENSIONS:
        raise ValueError(f"its norm is above 0, and it has at most {DIMENSIONS} components")
    if canary.vector is None:
        return canary
    vector = np.frombuffer(base64.b64decode(content["vector"]), dtype="<f4")
    if vector.shape != (DIMENSIONS,):
        raise ValueError(f"its vector has {len(vector)} numbers, not {DIMENSIONS}")
    return replace(canary, vector=vector)


def to_json(
    texts: Mapping[str, tuple[str, str]],
    token_ids: Sequence[Sequence[int]],
    vectors: np.ndarray,
    origin: str,
    hashes: Mapping[str, str],
    generation: int = 1,
) -> str:
    """Return a JSON file of canaries that `read` reads.

    `texts` maps names to (task, text), `vectors` is float32 [n, 768] before the normalisation, `origin` says in words
    what computed them, and `hashes` has the SHA-256 of each file that they were computed from.
    """
    canaries = [
        {
            "name": name,
            "task": task,
            "text": text,
            "token_ids": list(ids),
            "vector": base64.b64encode(vector.astype("<f4").tobytes()).decode(),
        }
        for (name, (task, text)), ids, vector in zip(texts.items(), token_ids, vectors, strict=True)
    ]
    head = {"origin": origin, "slack": 0, "cosines": [], "prompts": prompts_of(generation), "sha256": hashes}
    lines = ",\n".join(json.dumps(canary, ensure_ascii=False) for canary in canaries)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "canaries": [\n{lines}\n]}}\n'
