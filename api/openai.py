"""OpenAI's API, POST /v1/embeddings and GET /v1/models, with what Jina, Voyage and vLLM have beside OpenAI's fields."""

import asyncio
from collections.abc import Sequence
from typing import Any, Literal, cast

import msgspec

import encoding
from api import names
from api.operations import Api, Call, Operation, base64s, cut_end, numbers, one_of, options_of
from api.refusal import Refusal
from engine.tokenizer import Truncate
from service import Service
from tasks import PROMPTS, TITLED_TASK
from texts.options import EMBEDDING_DIMS, Options
from texts.request import Names

# The names that Jina and Voyage give to tasks.
TASKS = {
    "retrieval.query": "retrieval_query",
    "retrieval.passage": "retrieval_document",
    "text-matching": "semantic_similarity",
    "separation": "clustering",
    "query": "retrieval_query",
    "document": "retrieval_document",
    "code.query": "code_retrieval",
    "code.passage": "retrieval_document",
} | {task: task for task in PROMPTS}
# Voyage's name for the precision that OpenAI calls a format.
PRECISIONS = {"float": "float32", "base64": "float32"} | {name: name for name in encoding.WIRE_DTYPES}
TOKEN_IDS = (
    "token ids of another model's tokenizer would give vectors of another text; send strings (langchain-openai: "
    f"check_embedding_ctx_length=False), or with ids of this model's own tokenizer send 'tokenizer': {names.MODEL!r}"
)
NAMES = Names("input", "input[{}]", "titles[0]", "titles[{}]")


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's fields, then those of Jina, Voyage and vLLM, then this server's own: titles, and whose the ids are."""

    input: str | list[str | int | list[int]]
    model: str = names.MODEL
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None

    task: str | None = None
    input_type: str | None = None
    truncate: bool | Literal["end", "start", "none"] | None = None
    truncation: bool | None = None
    truncate_prompt_tokens: int | None = None
    output_dimension: int | None = None
    output_dtype: str | None = None
    embedding_type: str | None = None
    normalized: bool = True
    late_chunking: bool = False

    titles: list[str | None] | None = None
    tokenizer: str | None = None


class Embedding(msgspec.Struct):
    """One vector: a list of numbers, or base64 of its bytes."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class Usage(msgspec.Struct):
    """Tokens that the model read, prompts included."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct):
    """The vectors in the order of the input; `model` says which weights computed them."""

    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"


class Model(msgspec.Struct):
    """A name that requests may use, and the tokens that a text may have, prompt included, as vLLM says it."""

    id: str
    max_model_len: int
    object: str = "model"
    created: int = 0
    owned_by: str = "google"


class Models(msgspec.Struct):
    """All names: the model's own, and one for each task."""

    data: list[Model]
    object: str = "list"


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return OpenAI's error."""
    kind = {"key": "authentication_error", "busy": "rate_limit_error"}.get(refusal.kind, "invalid_request_error")
    code = {"model": "model_not_found", "key": "invalid_api_key", "busy": "rate_limit_exceeded"}.get(refusal.kind)
    kind = "server_error" if status >= 500 else kind
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.field, "code": code}}


async def embeddings(call: Call) -> EmbeddingsAnswer:
    """Embed a text or a list of them."""
    asked: EmbeddingsRequest = call.body
    single = isinstance(asked.input, str) or _is_ids(asked.input)
    items: Sequence[Any] = [asked.input] if single else asked.input
    if not all(isinstance(item, str) for item in items):
        items = await asyncio.to_thread(_decoded, items, single, asked.tokenizer, call.service)
    options = _options(asked, call.service)
    embedded = await call.embed(items, options, NAMES, single, asked.titles)
    is_base64 = "base64" in (asked.encoding_format, asked.embedding_type)
    vectors: list[Any] = await (base64s if is_base64 else numbers)(embedded.vectors)
    tokens = sum(embedded.token_counts)
    data = [Embedding(index, vector) for index, vector in enumerate(vectors)]
    return EmbeddingsAnswer(data, call.service.model, Usage(tokens, tokens))


def _task(asked: EmbeddingsRequest, service: Service) -> str:
    """Return the task that the fields and the model's name agree on."""
    said = names.task_in(asked.model, service)
    for field, name in (("task", asked.task), ("input_type", asked.input_type)):
        if name is None:
            continue
        one_of(field, name, TASKS)
        if said not in (None, TASKS[name]):
            raise ValueError(f"{field}: {name!r} is another task than {said!r}, which is asked for, too; give one")
        said = TASKS[name]
    return said or TITLED_TASK


def _is_ids(given: object) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(item, int) for item in given)


def _decoded(items: Sequence[object], single: bool, tokenizer: str | None, service: Service) -> list[str]:
    """Return the texts of token ids, where the request says that they are this model's."""
    texts = []
    for position, item in enumerate(items):
        name = "input" if single else f"input[{position}]"
        if not isinstance(item, str) and not _is_ids(item):
            raise ValueError(f"{name}: it is neither a text nor a list of token ids; give a string")
        if not isinstance(item, str) and tokenizer not in names.ALIASES:
            raise ValueError(f"{name}: {TOKEN_IDS}")
        try:
            texts.append(item if isinstance(item, str) else service.engine.tokenizer.decode(cast(list[int], item)))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return texts


def _options(asked: EmbeddingsRequest, service: Service) -> Options:
    if asked.late_chunking:
        raise ValueError("late_chunking: it is not in this API; leave it out, or send 'chunk' to Cog's /predictions")
    dimensions = one_of("output_dimension", asked.output_dimension, EMBEDDING_DIMS, EMBEDDING_DIMS[0])
    dimensions = one_of("dimensions", asked.dimensions, EMBEDDING_DIMS, dimensions)
    precision = one_of("embedding_type", asked.embedding_type, PRECISIONS, "float")
    precision = one_of("output_dtype", asked.output_dtype, PRECISIONS, precision)
    task, truncate = _task(asked, service), _truncate(asked, service.engine.tokenizer.max_tokens)
    return options_of(task, dimensions, asked.normalized, PRECISIONS[precision], truncate)


def _truncate(asked: EmbeddingsRequest, limit: int) -> Truncate:
    """Return the end to cut. OpenAI refuses a text that is too long; Jina, Voyage and vLLM have a field for it."""
    if asked.truncate is not None:
        return cut_end(asked.truncate)
    tokens = asked.truncate_prompt_tokens
    if tokens is None:
        return cut_end(bool(asked.truncation))
    if tokens == -1 or tokens >= limit:
        return "end"
    raise ValueError(
        f"truncate_prompt_tokens: {tokens} is below the limit of {limit:,}, the only one there is here; give -1, or "
        "shorten the texts"
    )


async def models(call: Call) -> Models:
    """List the names that requests may use."""
    return Models([_model(name, call.service) for name in names.listed()])


async def model(call: Call) -> Model:
    """Return one of the names, if it is served."""
    names.task_in(call.path["model"], call.service)
    return _model(call.path["model"], call.service)


def _model(name: str, service: Service) -> Model:
    return Model(name, service.engine.tokenizer.max_tokens)


API = Api("OpenAI", error)
OPERATIONS = [
    Operation(API, "POST", "/v1/embeddings", "Embed texts.", embeddings, EmbeddingsRequest, EmbeddingsAnswer),
    # Open, as mteb asks for it without the key that it has.
    Operation(API, "GET", "/v1/models", "List the model's names, one for each task.", models, None, Models, True),
    Operation(API, "GET", "/v1/models/{model:path}", "Say whether a name is served.", model, None, Model, True),
]
