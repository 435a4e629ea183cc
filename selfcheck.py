"""Proof that an engine computes what its checkpoint should: canary texts with their known token ids and vectors."""

import base64
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.contract import DIMENSIONS, Engine
from tasks import PROMPTS, prompt_for

logger = logging.getLogger(__name__)

# Relative errors |a - b| / |b|. Summing float32 in another order costs 1e-6; bfloat16 through 24 layers 1.4e-2, which
# is 1e-4 in 1 - cosine, so 4.5e-2 (1e-3) leaves room for other kernels.
FLOAT32_ERROR = 2e-5
COARSE_ERROR = 4.5e-2
# What the names in config_sentence_transformers.json, sentence-transformers' own, are called in `tasks`.
TASK_OF = {
    "query": "retrieval_query",
    "document": "retrieval_document",
    "Retrieval-query": "retrieval_query",
    "Retrieval-document": "retrieval_document",
    "Classification": "classification",
    "Clustering": "clustering",
    "STS": "semantic_similarity",
    "InstructionRetrieval": "code_retrieval",
    "Summarization": "summarization",
}


class SelfCheckError(RuntimeError):
    """An engine, or the checkpoint in it, that is not what it should be: what differs, and by how much."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison: of what, by how much it differs, and how much it may."""

    what: str
    difference: float
    allowed: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds; NaN does not."""
        return self.difference <= self.allowed

    def __str__(self) -> str:
        if self.detail:
            return f"{self.what} {self.detail}"
        return f"{self.what} is off by {self.difference:.3g}, {self.allowed:.3g} allowed"


@dataclass(frozen=True, slots=True)
class Canary:
    """One text: its task, and what is known of its token ids and its vector before the normalisation."""

    name: str
    task: str
    text: str
    token_ids: list[int] | None = None
    vector: np.ndarray | None = None  # float32 [768]
    norm: float | None = None
    leading: list[float] | None = None  # of the unit vector


@dataclass(frozen=True, slots=True)
class Canaries:
    """What a checkpoint must compute, and where that is known from."""

    origin: str
    prompts: dict[str, str]
    canaries: list[Canary]
    cosines: list[tuple[str, str, float]]
    slack: float
    """Allowed on top of an engine's own error: figures that are quoted are rounded, and from another implementation."""


def read(path: Path) -> Canaries:
    """Return the canaries in a JSON file. Raises SelfCheckError when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        canaries = [_canary(one) for one in content["canaries"]]
        cosines = [(a, b, float(cosine)) for a, b, cosine in content["cosines"]]
        return Canaries(content["origin"], dict(content["prompts"]), canaries, cosines, float(content["slack"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SelfCheckError(
            f"{path}: not a file of canaries ({error!r}); write it again with scripts/verify.py --write"
        ) from error


def _canary(described: dict[str, Any]) -> Canary:
    if "vector" not in described:
        return Canary(**described)
    return Canary(**described | {"vector": np.frombuffer(base64.b64decode(described["vector"]), dtype="<f4")})


def check(engine: Engine, directory: Path, canaries: Path | None) -> str:
    """Return in words what was compared. Raises SelfCheckError naming the comparisons that fail and by how much."""
    rows = prompt_rows(directory)
    if canaries is None:
        _raise_for(rows, directory)
        return "its prompts are right; no canaries.json beside it, so its vectors were not compared"
    known = read(canaries)
    rows += engine_rows(engine, known)
    _raise_for(rows, directory)
    return f"{len(rows)} comparisons with {known.origin} hold"


def _raise_for(rows: Sequence[Row], directory: Path) -> None:
    failed = [str(row) for row in rows if not row.ok]
    if failed:
        raise SelfCheckError(
            f"{directory}: {len(failed)} of {len(rows)} self-checks failed: {'; '.join(failed[:4])}; "
            "fetch the checkpoint again, or use the one that this file of canaries was written for"
        )


def prompt_rows(directory: Path) -> list[Row]:
    """Compare the prompts in the checkpoint's config with those that are used."""
    path = directory / "config_sentence_transformers.json"
    if not path.is_file():
        return []
    prompts = json.loads(path.read_text(encoding="utf-8")).get("prompts") or {}
    return [
        _equal(f"prompt {name!r} in {path.name}", prompt, prompt_for(TASK_OF[name]))
        for name, prompt in prompts.items()
        if name in TASK_OF
    ]


def engine_rows(engine: Engine, known: Canaries) -> list[Row]:
    """Embed the canaries and compare."""
    prompts = [prompt_for(one.task) for one in known.canaries]
    tokenized = engine.tokenizer.encode(prompts, [one.text for one in known.canaries])
    token_ids = [one.ids for one in tokenized]
    rows = [_equal(f"prompt of {task}", PROMPTS.get(task), prompt) for task, prompt in known.prompts.items()]
    rows += [
        _equal(f"token ids of {one.name!r}", ids, one.token_ids)
        for one, ids in zip(known.canaries, token_ids, strict=True)
        if one.token_ids is not None
    ]
    vectors = engine.embed(token_ids)
    if vectors.shape != (len(token_ids), DIMENSIONS):
        return [*rows, Row(f"shape {vectors.shape} of the vectors", 1, 0, f"is not {(len(token_ids), DIMENSIONS)}")]
    return rows + vector_rows(vectors, known, allowed_error(engine))


def allowed_error(engine: Engine) -> float:
    """Return the relative error of a vector that the engine's number format may make."""
    return FLOAT32_ERROR if engine.number_format == "float32" else COARSE_ERROR


def vector_rows(vectors: np.ndarray, known: Canaries, error: float) -> list[Row]:
    """Compare float32 [n, 768] before the normalisation with what is known of it, `error` being allowed."""
    rows = []
    units = {}
    allowed = error + known.slack
    for one, vector in zip(known.canaries, vectors, strict=True):
        norm = float(np.linalg.norm(vector))
        units[one.name] = vector / norm
        if one.vector is not None:
            difference = np.linalg.norm(vector - one.vector) / np.linalg.norm(one.vector)
            rows.append(Row(f"vector of {one.name!r}", float(difference), allowed))
        if one.norm is not None:
            rows.append(Row(f"norm of {one.name!r}", abs(norm / one.norm - 1), allowed))
        if one.leading is not None:
            off = np.abs(units[one.name][: len(one.leading)] - one.leading).max()
            rows.append(Row(f"leading components of {one.name!r}", float(off), allowed))
    for a, b, cosine in known.cosines:
        off = abs(float(units[a] @ units[b]) - cosine)
        rows.append(Row(f"cosine of {a!r} and {b!r}", off, allowed))
    return rows


def _equal(what: str, found: object, expected: object) -> Row:
    if found == expected:
        return Row(what, 0, 0)
    if isinstance(found, list) and isinstance(expected, list):
        pairs = list(zip(found, expected, strict=False))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        return Row(what, 1, 0, f"are {len(found)}, expected {len(expected)}, and differ from position {at} on")
    return Row(what, 1, 0, f"is {found!r}, expected {expected!r}")


def describe(
    vectors: np.ndarray, token_ids: Sequence[Sequence[int]], texts: Mapping[str, tuple[str, str]], origin: str
) -> str:
    """Return the JSON of canaries: `texts` is name -> (task, text), `vectors` float32 [n, 768] of a reference."""
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
    head = {"origin": origin, "slack": 0, "cosines": [], "prompts": PROMPTS}
    lines = ",\n".join(json.dumps(canary, ensure_ascii=False) for canary in canaries)
    return f'{json.dumps(head, ensure_ascii=False)[:-1]}, "canaries": [\n{lines}\n]}}\n'
