"""Gemini's API: :embedContent and :batchEmbedContents of models/{model}, each text with its own task and dimensions."""

from collections.abc import Iterator, Sequence
from http import HTTPStatus
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec

from api import names
from api.fields import Whole, agreed, cut_end, dimensions_of
from api.operations import Answer, Api, Call, Operation, numbers, options_of
from api.refusal import Refusal
from batching.pools import TEXTS, run
from texts.limits import MAX_TEXTS
from texts.options import Options
from texts.request import Names, Texts

TASKS: names.Tasks = {
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

Group = tuple[list[int], list[str], list[str | None]]
"""Positions, texts and titles of requests with the same options."""


class Part(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A text."""

    text: str


class Content(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """A list of one part. Several could be one text or several."""

    parts: list[Part]
    role: str | None = None


class EmbedContentConfig(msgspec.Struct, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """What the vector is for. Google's JSON takes snake_case too."""

    task_type: str | None = None
    title: str | None = None
    output_dimensionality: Whole | None = None
    auto_truncate: bool | None = None
    snake_task_type: str | None = msgspec.field(default=None, name="task_type")
    snake_output_dimensionality: Whole | None = msgspec.field(default=None, name="output_dimensionality")
    snake_auto_truncate: bool | None = msgspec.field(default=None, name="auto_truncate")


JSON_NAMES = {field.name: field.encode_name for field in msgspec.structs.fields(EmbedContentConfig)}


class EmbedContentRequest(EmbedContentConfig, rename="camel", forbid_unknown_fields=True, kw_only=True):
    """A text, and what its vector is for: in an object of its own, or beside the text as in the past."""

    content: Content
    model: str | None = None
    embed_content_config: EmbedContentConfig | None = None
    snake_embed_content_config: EmbedContentConfig | None = msgspec.field(default=None, name="embed_content_config")


class BatchEmbedContentsRequest(msgspec.Struct, rename="camel", forbid_unknown_fields=True):
    """Several texts, each with its own task, title and dimensions."""

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
    """Return Google's error, with the name that Google's APIs give to HTTP's status."""
    known = {
        400: "INVALID_ARGUMENT",
        401: "UNAUTHENTICATED",
        403: "PERMISSION_DENIED",
        429: "RESOURCE_EXHAUSTED",
        500: "INTERNAL",
        503: "UNAVAILABLE",
    }
    name = known.get(status) or HTTPStatus(status).phrase.upper().replace(" ", "_")
    return {"error": {"code": status, "message": refusal.message, "status": name}}


async def embed_content(call: Call) -> Answer:
    """Embed one text."""
    return await _embed(call, [call.body], single=True)


async def batch_embed_contents(call: Call) -> Answer:
    """Embed several texts."""
    return await _embed(call, call.body.requests, single=False)


async def _embed(call: Call, asked: Sequence[EmbedContentRequest], single: bool) -> Answer:
    """Embed requests, those of the same options together, and answer in their order."""
    if not asked:
        raise ValueError("requests: the list is empty; give at least one request")
    if len(asked) > MAX_TEXTS:
        raise ValueError(f"requests: {len(asked):,} were given; give 1 to {MAX_TEXTS:,}, the rest in further calls")
    groups = await run(TEXTS, len(asked), _grouped, asked, single, call)
    embedded = []
    for options, (of_group, texts, titles) in groups.items():
        names_of = Names(
            "content.parts[0].text", "requests[{}].content.parts[0].text", "title", "requests[{}].title", of_group
        )
        request = Texts(texts, titles if any(titles) else None, single, names_of)
        embedded.append(await call.service.embed(request, options))
    positions = [*chain.from_iterable(of_group for of_group, _, _ in groups.values())]

    def write() -> EmbedContentAnswer | BatchEmbedContentsAnswer:
        values = chain.from_iterable(numbers(each.vectors) for each in embedded)
        in_order = sorted(zip(positions, values, strict=True), key=itemgetter(0))
        vectors = [ContentEmbedding(each) for _, each in in_order]
        usage = UsageMetadata(sum(each.tokens for each in embedded))
        return EmbedContentAnswer(vectors[0], usage) if single else BatchEmbedContentsAnswer(vectors, usage)

    return Answer(write, embedded, positions)


def _grouped(asked: Sequence[EmbedContentRequest], single: bool, call: Call) -> dict[Options, Group]:
    """Return the requests in groups that have the same options."""
    groups: dict[Options, Group] = {}
    for position, each in enumerate(asked):
        name = "" if single else f"requests[{position}]."
        positions, texts, titles = groups.setdefault(_options(each, name, call), ([], [], []))
        positions.append(position)
        texts.append(_text(each, name))
        titles.append(agreed(*_said(each, name, "title")))
    return groups


def _text(asked: EmbedContentRequest, name: str) -> str:
    """Return the text of a request's one part."""
    if len(asked.content.parts) != 1:
        raise ValueError(
            f"{name}content.parts: there are {len(asked.content.parts)}; give one: join texts that belong to one "
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
    """Yield a field's name as the client wrote it, and twice its value, for each place in a request that has it."""
    places = (
        ("", asked),
        ("embedContentConfig.", asked.embed_content_config),
        ("embed_content_config.", asked.snake_embed_content_config),
    )
    for place, config in places:
        for attribute in (field, f"snake_{field}"):
            value = getattr(config, attribute, None)
            if value is not None:
                yield f"{name}{place}{JSON_NAMES[attribute]}", value, value


API = Api("Gemini", error, key_header="x-goog-api-key")
OPERATIONS = [
    Operation(API, "POST", f"/{version}/models/{{model:path}}:{verb}", summary, handle, asks, answers)
    for version in ("v1", "v1beta")
    for verb, summary, handle, asks, answers in (
        ("embedContent", "Embed a text.", embed_content, EmbedContentRequest, EmbedContentAnswer),
        (
            "batchEmbedContents",
            "Embed texts.",
            batch_embed_contents,
            BatchEmbedContentsRequest,
            BatchEmbedContentsAnswer,
        ),
    )
]
