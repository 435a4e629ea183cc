"""Gemini's API: :embedContent and :batchEmbedContents of models/{model}, each text with its own task and dimensions."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from typing import Any, cast

import msgspec

from api import names
from api.fields import Whole, agreed, cut_end, dimensions_of
from api.operations import Api, Call, Operation, numbers, options_of
from api.refusal import Refusal
from service import off_loop
from texts.options import Options
from texts.request import MAX_TEXTS, Names

# What so few requests ask for is read in less time than handing them to another thread takes.
REQUESTS_ON_LOOP = 50
TASKS: dict[str, str | None] = {
    "TASK_TYPE_UNSPECIFIED": None,
    "RETRIEVAL_QUERY": "retrieval_query",
    "RETRIEVAL_DOCUMENT": "retrieval_document",
    "SEMANTIC_SIMILARITY": "semantic_similarity",
    "CLASSIFICATION": "classification",
    "CLUSTERING": "clustering",
    "QUESTION_ANSWERING": "question_answering",
    "FACT_VERIFICATION": "fact_verification",
    "CODE_RETRIEVAL_QUERY": "code_retrieval",
}


class Part(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A text."""

    text: str


class Content(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """One part, as several could be read as one text or as several."""

    parts: list[Part]
    role: str | None = None


class EmbedContentConfig(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What the vector is for. Google's JSON takes snake_case, too."""

    task_type: str | None = None
    title: str | None = None
    output_dimensionality: Whole | None = None
    auto_truncate: bool | None = None
    snake_task_type: str | None = msgspec.field(default=None, name="task_type")
    snake_output_dimensionality: Whole | None = msgspec.field(default=None, name="output_dimensionality")
    snake_auto_truncate: bool | None = msgspec.field(default=None, name="auto_truncate")


# The attributes for each setting, with their names in JSON.
SPELLINGS = {
    name: [
        (field.name, field.encode_name)
        for field in msgspec.structs.fields(EmbedContentConfig)
        if field.name in (name, f"snake_{name}")
    ]
    for name in ("task_type", "title", "output_dimensionality", "auto_truncate")
}


class EmbedContentRequest(EmbedContentConfig, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A text, and what its vector is for: as an object of its own, or beside the text as it used to be."""

    content: Content
    model: str | None = None
    embed_content_config: EmbedContentConfig | None = None
    snake_embed_content_config: EmbedContentConfig | None = msgspec.field(default=None, name="embed_content_config")


class BatchEmbedContentsRequest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Several texts, of which each has its own task, title and dimensions."""

    requests: list[EmbedContentRequest]


class ContentEmbedding(msgspec.Struct, rename="camel"):
    """A vector."""

    values: list[float]


class UsageMetadata(msgspec.Struct, rename="camel"):
    """Tokens that the model read, prompts included."""

    prompt_token_count: int


class EmbedContentAnswer(msgspec.Struct, rename="camel"):
    """The vector of one text."""

    embedding: ContentEmbedding
    usage_metadata: UsageMetadata


class BatchEmbedContentsAnswer(msgspec.Struct, rename="camel"):
    """The vectors in the order of the requests."""

    embeddings: list[ContentEmbedding]
    usage_metadata: UsageMetadata


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return Google's error, with the name that Google's APIs have for HTTP's status."""
    known = {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
    }
    name = known.get(status) or HTTPStatus(status).phrase.upper().replace(" ", "_")
    return {"error": {"code": status, "message": refusal.message, "status": name}}


async def embed_content(call: Call) -> EmbedContentAnswer:
    """Embed one text."""
    [vector], tokens = await _embed(call, [call.body], single=True)
    return EmbedContentAnswer(vector, UsageMetadata(tokens))


async def batch_embed_contents(call: Call) -> BatchEmbedContentsAnswer:
    """Embed several texts."""
    vectors, tokens = await _embed(call, call.body.requests, single=False)
    return BatchEmbedContentsAnswer(vectors, UsageMetadata(tokens))


async def _embed(call: Call, asked: Sequence[EmbedContentRequest], single: bool) -> tuple[list[ContentEmbedding], int]:
    """Return the vectors and how many tokens they took. Requests of the same options are computed together."""
    groups = await off_loop(len(asked) > REQUESTS_ON_LOOP, _grouped, asked, single, call)
    if not groups:
        raise ValueError("requests: the list is empty; give at least one request")
    if len(asked) > MAX_TEXTS:
        raise ValueError(f"requests: {len(asked):,} were given; give 1 to {MAX_TEXTS:,}, the rest in further calls")
    vectors: list[Any] = [None] * len(asked)
    truncated: list[int] = []
    prompted: list[int] = []
    tokens = 0
    for options, positions in groups.items():
        texts = [_text(asked[i], "" if single else f"requests[{i}].") for i in positions]
        titles = [agreed(*_said(asked[i], "" if single else f"requests[{i}].", "title")) for i in positions]
        names_of = Names(
            "content.parts[0].text", "requests[{}].content.parts[0].text", "title", "requests[{}].title", positions
        )
        embedded = await call.embed(texts, options, names_of, single, titles if any(titles) else None)
        for position, values in zip(positions, await numbers(embedded.vectors), strict=True):
            vectors[position] = ContentEmbedding(cast(list[float], values))
        truncated += [positions[i] for i in embedded.truncated]
        prompted += [positions[i] for i in embedded.prompted]
        tokens += sum(embedded.token_counts)
    call.truncated, call.prompted = sorted(truncated), sorted(prompted)
    return vectors, tokens


def _grouped(asked: Sequence[EmbedContentRequest], single: bool, call: Call) -> dict[Options, list[int]]:
    """Return the positions of the requests that have the same options."""
    groups: dict[Options, list[int]] = {}
    for position, each in enumerate(asked):
        groups.setdefault(_options(each, "" if single else f"requests[{position}].", call), []).append(position)
    return groups


def _text(asked: EmbedContentRequest, name: str) -> str:
    """Return the text of a request's one part."""
    if len(asked.content.parts) != 1:
        raise ValueError(
            f"{name}content.parts: there are {len(asked.content.parts)}; give one: join texts that are to have one "
            "vector, and send others as requests of batchEmbedContents"
        )
    return asked.content.parts[0].text


def _options(asked: EmbedContentRequest, name: str, call: Call) -> Options:
    models = {"the URL's model": call.path["model"], f"{name}model": asked.model}
    task_types = {field: value for field, value, _ in _said(asked, name, "task_type")}
    truncate = agreed(*_said(asked, name, "auto_truncate"))
    return options_of(
        names.task_of(call.service, models, task_types, TASKS),
        embedding_dim=dimensions_of(*(each[:2] for each in _said(asked, name, "output_dimensionality"))),
        truncate=cut_end(truncate is not False),
    )


def _said(asked: EmbedContentRequest, name: str, field: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield a field as the client wrote it, and twice its value, for each place in a request where it stands."""
    places = (
        ("", asked),
        ("embedContentConfig.", asked.embed_content_config),
        ("embed_content_config.", asked.snake_embed_content_config),
    )
    for place, config in places:
        if config is None:
            continue
        for attribute, spelling in SPELLINGS[field]:
            value = getattr(config, attribute)
            if value is not None:
                yield f"{name}{place}{spelling}", value, value


API = Api("Gemini", error, key_header="x-goog-api-key")
OPERATIONS = [
    operation
    for path in ("/v1/models/{model:path}", "/v1beta/models/{model:path}")
    for operation in (
        Operation(
            API, "POST", f"{path}:embedContent", "Embed a text.", embed_content, EmbedContentRequest, EmbedContentAnswer
        ),
        Operation(
            API,
            "POST",
            f"{path}:batchEmbedContents",
            "Embed texts.",
            batch_embed_contents,
            BatchEmbedContentsRequest,
            BatchEmbedContentsAnswer,
        ),
    )
]
