"""How a load's requests are sent to each API, and where the vectors are in the answers."""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import encoding

MODEL = "embeddinggemma-300m"


@dataclass(frozen=True)
class Door:
    """An API: where requests go, the body for the inputs of a prediction, and the answer's vectors, [n, width]."""

    path: str
    body: Callable[[Mapping[str, Any]], dict[str, Any]]
    embedding: Callable[[Any], Any]
    """What in an answer is the same whenever the request is."""
    vectors: Callable[[Any, Mapping[str, Any]], np.ndarray]
    """The vectors, from an answer and the inputs."""


def _cog_output(answer: dict[str, Any]) -> dict[str, Any]:
    if answer["status"] != "succeeded":
        raise ValueError(str(answer.get("error"))[:60])
    return dict(answer["output"])


def _openai_body(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input": inputs["text"] if "text" in inputs else inputs["texts"],
        "model": f"{MODEL}:{inputs.get('task', 'retrieval_document')}",
        "dimensions": inputs.get("embedding_dim", 768),
        "output_dtype": inputs.get("precision", "float32"),
        "encoding_format": "base64" if _is_base64(inputs) else "float",
        "normalized": inputs.get("normalize", True),
    }


def _is_base64(inputs: Mapping[str, Any]) -> bool:
    """Return whether a request asks for base64, which OpenAI's API has for float32 alone."""
    return inputs.get("output_format") != "array" and inputs.get("precision", "float32") == "float32"


def _openai_vectors(answer: dict[str, Any], inputs: Mapping[str, Any]) -> np.ndarray:
    dtype = encoding.WIRE_DTYPES[inputs.get("precision", "float32")]
    rows = [each["embedding"] for each in answer["data"]]
    if isinstance(rows[0], str):
        return np.stack([np.frombuffer(base64.b64decode(row), dtype) for row in rows])
    return np.array(rows, dtype)


DOORS = {
    "cog": Door(
        "/predictions",
        lambda inputs: {"input": inputs},
        lambda answer: _cog_output(answer)["embedding"],
        lambda answer, _: np.atleast_2d(encoding.decode(_cog_output(answer))),
    ),
    "openai": Door(
        "/v1/embeddings",
        _openai_body,
        lambda answer: [each["embedding"] for each in answer["data"]],
        _openai_vectors,
    ),
}
