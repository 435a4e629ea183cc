"""Cohere's API: POST /v2/embed, which answers in several number formats at once, and its first version, /v1/embed."""

import uuid
from typing import Any

import msgspec
import numpy as np

import encoding
from api import names
from api.fields import Whole, chunking_asked, cut_end, dimensions_of, one_of, token_limit
from api.operations import Answer, Api, Call, Operation, base64s, chunks_of, numbers, options_of
from api.refusal import NO_MEDIA, Refusal
from texts.request import Names, Texts, check_count

TASKS: names.Tasks = {"search_document": "retrieval_document", "search_query": "retrieval_query", **names.OUR_TASKS}
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
    """A list of one part. Several could be joined in more than one way."""

    content: list[Part]


class EmbedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A list of texts; `input_type` is Cohere's name for a task, or ours, as are the last three fields."""

    model: str | None = None
    texts: list[str] | None = None
    inputs: list[Input] | None = None
    input_type: str | None = None
    embedding_types: list[str] | None = None
    output_dimension: Whole | None = None
    truncate: str | None = None
    max_tokens: Whole | None = None
    images: list[Any] | None = None
    priority: Whole | None = None
    chunk: Whole | None = None
    overlap: Whole | None = None
    late_chunking: bool | None = None


class Meta(msgspec.Struct):
    """The version of Cohere's API, and the tokens that the model read."""

    api_version: dict[str, str]
    billed_units: dict[str, int]


class EmbedAnswer(msgspec.Struct):
    """The vectors in each requested number format; for `chunks` see /v1/embeddings."""

    id: str
    embeddings: dict[str, list[list[float] | str]]
    texts: list[str]
    meta: Meta
    response_type: str = "embeddings_by_type"
    chunks: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


class FirstEmbedAnswer(msgspec.Struct):
    """As in the first version: without `embedding_types` the vectors are a list."""

    id: str
    embeddings: list[list[float]] | dict[str, list[list[float] | str]]
    texts: list[str]
    meta: Meta
    response_type: str
    chunks: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return Cohere's error."""
    return {"message": refusal.message}


async def embed(call: Call, version: str = "2") -> Answer:
    """Embed a list of texts."""
    asked: EmbedRequest = call.body
    texts = _texts(asked)
    kinds = asked.embedding_types or ["float"]
    if len(kinds) > len(PRECISIONS):
        raise ValueError(f"embedding_types: {len(kinds):,} are asked for; name each of {', '.join(PRECISIONS)} once")
    for position, kind in enumerate(kinds):
        one_of(f"embedding_types[{position}]", kind, PRECISIONS)
    options = options_of(
        names.task_of(call.service, {"model": asked.model}, {"input_type": asked.input_type}, TASKS),
        embedding_dim=dimensions_of(("output_dimension", asked.output_dimension)),
        truncate=cut_end(asked.truncate or "END"),
        chunking=chunking_asked(asked.chunk, asked.overlap, asked.late_chunking, ("max_tokens", asked.max_tokens)),
        max_tokens=token_limit("max_tokens", asked.max_tokens),
    )
    embedded = await call.service.embed(texts, options)
    repeated: list[str] = [*texts.texts]

    def write() -> EmbedAnswer | FirstEmbedAnswer:
        vectors = {kind: _encoded(embedded.vectors, kind) for kind in dict.fromkeys(kinds)}
        facts = (repeated, Meta({"version": version}, {"input_tokens": embedded.tokens}))
        chunks = chunks_of(embedded)
        if version == "2":
            return EmbedAnswer(str(uuid.uuid4()), vectors, *facts, chunks=chunks)
        if asked.embedding_types:
            return FirstEmbedAnswer(str(uuid.uuid4()), vectors, *facts, "embeddings_by_type", chunks)
        return FirstEmbedAnswer(str(uuid.uuid4()), vectors["float"], *facts, "embeddings_floats", chunks)

    return Answer(write, [embedded], characters=sum(map(len, repeated)))


def _texts(asked: EmbedRequest) -> Texts:
    """Return the texts that `texts` or `inputs` has."""
    if asked.images:
        raise ValueError(f"images: {NO_MEDIA}: a list of strings in 'texts'")
    if (asked.texts is None) == (asked.inputs is None):
        problem = "it is missing" if asked.texts is None else "'inputs' are given, too"
        raise ValueError(f"texts: {problem}; give a list of strings there, or objects with 'content' in 'inputs'")
    if asked.texts is not None:
        return Texts(asked.texts)
    texts: list[str] = []
    check_count(asked.inputs or [], "inputs")
    for position, each in enumerate(asked.inputs or []):
        name = f"inputs[{position}].content"
        if len(each.content) != 1:
            raise ValueError(
                f"{name}: it has {len(each.content)} parts; give one, with the texts that belong together joined"
            )
        [part] = each.content
        if part.type != "text" or part.text is None or part.image_url is not None:
            raise ValueError(f"{name}[0]: {NO_MEDIA}: 'type': 'text' and a 'text'")
        texts.append(part.text)
    return Texts(texts, names=INPUT_NAMES)


async def embed_first(call: Call) -> Answer:
    """Embed a list of texts and answer as the first version did."""
    return await embed(call, "1")


def _encoded(vectors: np.ndarray, kind: str) -> list[Any]:
    return (base64s if kind == "base64" else numbers)(encoding.convert(vectors, PRECISIONS[kind]))


API = Api("Cohere", error)
OPERATIONS = [
    Operation(API, "POST", "/v2/embed", "Embed texts.", embed, EmbedRequest, EmbedAnswer),
    Operation(API, "POST", "/v1/embed", "Embed texts, version 1.", embed_first, EmbedRequest, FirstEmbedAnswer),
]
