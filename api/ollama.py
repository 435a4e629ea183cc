"""Ollama's API: POST /api/embed, GET /api/tags and /api/version. A task comes with the model's name."""

import time
from typing import Any

import msgspec

from api import names
from api.operations import Api, Call, Operation, cut_end, numbers, one_of, options_of
from api.refusal import Refusal
from tasks import TITLED_TASK
from texts.options import EMBEDDING_DIMS
from texts.request import Names

VERSION = "0.13.0"
"""For clients that look at the version for what it has."""


NAMES = Names("input", "input[{}]")


class EmbedRequest(msgspec.Struct):
    """A text or a list of them. `options` and `keep_alive`, which say how Ollama runs a model, change nothing here."""

    model: str
    input: str | list[str]
    truncate: bool | str = True
    dimensions: int | None = None
    options: dict[str, Any] | None = None
    keep_alive: str | float | None = None


class EmbedAnswer(msgspec.Struct):
    """The vectors, nanoseconds, and the tokens that the model read."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class Tag(msgspec.Struct):
    """A name that requests may use."""

    name: str
    model: str
    details: dict[str, Any]
    modified_at: str = "1970-01-01T00:00:00Z"
    size: int = 0
    digest: str = ""


class Tags(msgspec.Struct):
    """All names: the model's own, and one for each task."""

    models: list[Tag]


class Version(msgspec.Struct):
    """A version of Ollama that has these operations."""

    version: str


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return Ollama's error."""
    return {"error": refusal.message}


async def embed(call: Call) -> EmbedAnswer:
    """Embed a text or a list of them."""
    started = time.perf_counter_ns()
    asked: EmbedRequest = call.body
    task = names.task_in(asked.model, call.service) or TITLED_TASK
    dimensions = one_of("dimensions", asked.dimensions, EMBEDDING_DIMS, EMBEDDING_DIMS[0])
    single = isinstance(asked.input, str)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    options = options_of(task, dimensions, truncate=cut_end(asked.truncate))
    embedded = await call.embed(texts, options, NAMES, single)
    vectors: list[Any] = await numbers(embedded.vectors)
    return EmbedAnswer(asked.model, vectors, time.perf_counter_ns() - started, 0, sum(embedded.token_counts))


async def tags(call: Call) -> Tags:
    """List the names that requests may use."""
    details = {"family": "gemma3", "parameter_size": "300M", "quantization_level": call.service.engine.number_format}
    return Tags([Tag(name, name, details) for name in names.listed()])


async def version(call: Call) -> Version:
    """Return a version of Ollama that has these operations."""
    return Version(VERSION)


API = Api("Ollama", error)
OPERATIONS = [
    Operation(API, "POST", "/api/embed", "Embed texts.", embed, EmbedRequest, EmbedAnswer),
    Operation(API, "GET", "/api/tags", "List the model's names, one for each task.", tags, answers=Tags),
    Operation(API, "GET", "/api/version", "Say which of Ollama's versions has this API.", version, answers=Version),
]
