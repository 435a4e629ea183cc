"""Cohere's API: POST /v2/embed, with several number formats of the same vectors at once, and its first version."""

import uuid
from typing import Any, cast

import msgspec
import numpy as np

import encoding
from api import names
from api.operations import Api, Call, Operation, base64s, cut_end, numbers, one_of, options_of
from api.refusal import Refusal
from service import NUMBERS_ON_LOOP, off_loop
from tasks import PROMPTS, TITLED_TASK
from texts.options import EMBEDDING_DIMS

TASKS = {"search_document": "retrieval_document", "search_query": "retrieval_query"} | {task: task for task in PROMPTS}
PRECISIONS = {"float": "float32", "base64": "float32"} | {
    precision: precision for precision in ("int8", "uint8", "binary", "ubinary")
}


class EmbedRequest(msgspec.Struct):
    """A list of texts; `input_type` is one of Cohere's names for a task, or one of this server's."""

    model: str = names.MODEL
    texts: list[str] | None = None
    input_type: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: int | None = None
    truncate: str | None = None
    images: Any = None
    inputs: Any = None


class Meta(msgspec.Struct):
    """The version of Cohere's API, and the tokens that the model read."""

    api_version: dict[str, str]
    billed_units: dict[str, int]


class EmbedAnswer(msgspec.Struct):
    """The vectors in each number format that was asked for."""

    id: str
    embeddings: dict[str, list[list[float] | str]]
    texts: list[str]
    meta: Meta
    response_type: str = "embeddings_by_type"


class FirstEmbedAnswer(msgspec.Struct):
    """The vectors as the first version has them where no `embedding_types` were asked for: a list."""

    id: str
    embeddings: list[list[float]] | dict[str, list[list[float] | str]]
    texts: list[str]
    meta: Meta
    response_type: str


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return Cohere's error."""
    return {"message": refusal.message}


async def embed(call: Call, version: str = "2") -> EmbedAnswer:
    """Embed a list of texts."""
    asked: EmbedRequest = call.body
    if asked.images or asked.inputs or asked.texts is None:
        raise ValueError("texts: it is missing; give a list of strings there; images and inputs are not embedded here")
    task = names.task_in(asked.model, call.service) or TITLED_TASK
    task = TASKS[one_of("input_type", asked.input_type, TASKS, task)]
    kinds = asked.embedding_types or ["float"]
    for position, kind in enumerate(kinds):
        one_of(f"embedding_types[{position}]", kind, PRECISIONS)
    dimensions = one_of("output_dimension", asked.output_dimension, EMBEDDING_DIMS, EMBEDDING_DIMS[0])
    options = options_of(task, dimensions, truncate=cut_end(asked.truncate or "END"))
    embedded = await call.embed(asked.texts, options)
    vectors = {kind: await _encoded(embedded.vectors, kind) for kind in dict.fromkeys(kinds)}
    meta = Meta({"version": version}, {"input_tokens": sum(embedded.token_counts)})
    return EmbedAnswer(str(uuid.uuid4()), vectors, asked.texts, meta)


async def embed_first(call: Call) -> FirstEmbedAnswer:
    """Embed a list of texts, and answer as the first version did."""
    answer = await embed(call, "1")
    facts = (answer.texts, answer.meta)
    if call.body.embedding_types:
        return FirstEmbedAnswer(answer.id, answer.embeddings, *facts, answer.response_type)
    vectors = cast(list[list[float]], answer.embeddings["float"])
    return FirstEmbedAnswer(answer.id, vectors, *facts, "embeddings_floats")


async def _encoded(vectors: np.ndarray, kind: str) -> list[Any]:
    converted = await off_loop(vectors.size > NUMBERS_ON_LOOP, encoding.convert, vectors, PRECISIONS[kind])
    return await (base64s if kind == "base64" else numbers)(converted)


API = Api("Cohere", error)
OPERATIONS = [
    Operation(API, "POST", "/v2/embed", "Embed texts.", embed, EmbedRequest, EmbedAnswer),
    Operation(API, "POST", "/v1/embed", "Embed texts, version 1.", embed_first, EmbedRequest, FirstEmbedAnswer),
]
