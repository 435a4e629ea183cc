"""Cohere's API: POST /v2/embed, with several number formats of the same vectors at once, and its first version."""

import uuid
from typing import Any, cast

import msgspec
import numpy as np

import encoding
from api import names
from api.fields import Whole, cut_end, dimensions_of, one_of, token_limit
from api.operations import Api, Call, Operation, base64s, numbers, options_of
from api.refusal import Refusal
from service import NUMBERS_ON_LOOP, off_loop
from tasks import PROMPTS
from texts.request import DEFAULT_NAMES, Names

TASKS = {"search_document": "retrieval_document", "search_query": "retrieval_query"} | {task: task for task in PROMPTS}
PRECISIONS = {"float": "float32", "base64": "float32"} | {
    precision: precision for precision in ("int8", "uint8", "binary", "ubinary")
}


INPUT_NAMES = Names(texts="inputs[{}].content[0].text")


class Part(msgspec.Struct, forbid_unknown_fields=True):
    """A text; images are refused."""

    type: str = "text"
    text: str | None = None
    image_url: Any = None


class Input(msgspec.Struct, forbid_unknown_fields=True):
    """One part, as several could be joined in more than one way."""

    content: list[Part]


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A list of texts; `input_type` is one of Cohere's names for a task, or one of this server's."""

    model: str = names.MODEL
    texts: list[str] | None = None
    inputs: list[Input] | None = None
    input_type: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: Whole | None = None
    truncate: str | None = None
    max_tokens: Whole | None = None
    images: list[Any] | None = None
    priority: Whole | None = None


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
    texts, names_of = _texts(asked)
    kinds = asked.embedding_types or ["float"]
    for position, kind in enumerate(kinds):
        one_of(f"embedding_types[{position}]", kind, PRECISIONS)
    options = options_of(
        names.task_of(call.service, {"model": asked.model}, {"input_type": asked.input_type}, TASKS),
        embedding_dim=dimensions_of(("output_dimension", asked.output_dimension)),
        truncate=cut_end(asked.truncate or "END"),
        max_tokens=token_limit("max_tokens", asked.max_tokens),
    )
    embedded = await call.embed(texts, options, names_of)
    vectors = {kind: await _encoded(embedded.vectors, kind) for kind in dict.fromkeys(kinds)}
    meta = Meta({"version": version}, {"input_tokens": sum(embedded.token_counts)})
    return EmbedAnswer(str(uuid.uuid4()), vectors, texts, meta)


def _texts(asked: EmbedRequest) -> tuple[list[str], Names]:
    """Return the texts, and what errors call them."""
    if asked.images:
        raise ValueError("images: they are not embedded here; give a list of strings in 'texts'")
    if (asked.texts is None) == (asked.inputs is None):
        problem = "it is missing" if asked.texts is None else "'inputs' are given, too"
        raise ValueError(f"texts: {problem}; give a list of strings there, or objects with 'content' in 'inputs'")
    if asked.texts is not None:
        return asked.texts, DEFAULT_NAMES
    texts: list[str] = []
    for position, each in enumerate(asked.inputs or []):
        name = f"inputs[{position}].content"
        if len(each.content) != 1:
            raise ValueError(
                f"{name}: it has {len(each.content)} parts; give one, with the texts that belong together joined"
            )
        [part] = each.content
        if part.type != "text" or part.text is None or part.image_url is not None:
            raise ValueError(f"{name}[0]: only texts are embedded here; give 'type': 'text' and a 'text'")
        texts.append(part.text)
    return texts, INPUT_NAMES


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
