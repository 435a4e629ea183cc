"""Ollama's API: POST /api/embed and the older /api/embeddings, and what programs ask first to see what there is.

A task comes with the model's name.
"""

import time
from typing import Any

import msgspec
from starlette.responses import PlainTextResponse, Response

from api import names
from api.fields import Whole, agreed, cut_end, dimensions_of, token_limit
from api.operations import Api, Call, Operation, numbers, options_of
from api.refusal import Refusal
from service import Embedded, Service
from texts.options import EMBEDDING_DIMS
from texts.request import Names

VERSION = "0.13.0"
"""For clients that look at the version for what it has."""
FAMILY = "gemma3"
NAMES = Names("input", "input[{}]")


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """`num_ctx` cuts texts. The others say how Ollama writes texts, or which of a machine's parts it uses."""

    num_ctx: Whole | None = None

    num_keep: Any = None
    seed: Any = None
    num_predict: Any = None
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    tfs_z: Any = None
    typical_p: Any = None
    repeat_last_n: Any = None
    temperature: Any = None
    repeat_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None
    mirostat: Any = None
    mirostat_tau: Any = None
    mirostat_eta: Any = None
    penalize_newline: Any = None
    stop: Any = None
    draft_num_predict: Any = None
    numa: Any = None
    num_batch: Any = None
    num_gpu: Any = None
    main_gpu: Any = None
    low_vram: Any = None
    f16_kv: Any = None
    logits_all: Any = None
    vocab_only: Any = None
    embedding_only: Any = None
    use_mmap: Any = None
    use_mlock: Any = None
    num_thread: Any = None


class Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a request has beside its texts. `keep_alive` and `stream`, which say how Ollama works, change nothing."""

    model: str
    options: Options | None = None
    keep_alive: str | float | None = None
    stream: bool | None = None


class EmbedRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """A text or a list of them."""

    input: str | list[str]
    truncate: bool | str | None = None
    dimensions: Whole | None = None


class EmbeddingsRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """A text."""

    prompt: str


class ShowRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The model's name, which was called `name` before. The others are about models that write texts."""

    model: str | None = None
    name: str | None = None
    verbose: Any = None
    system: Any = None
    template: Any = None
    options: Any = None


class EmbedAnswer(msgspec.Struct):
    """The vectors, nanoseconds, and the tokens that the model read."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int


class EmbeddingsAnswer(msgspec.Struct):
    """The vector."""

    embedding: list[float]


class ShowAnswer(msgspec.Struct):
    """What the model is."""

    details: dict[str, Any]
    model_info: dict[str, Any]
    capabilities: list[str]
    modified_at: str = "1970-01-01T00:00:00Z"


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
    single = isinstance(asked.input, str)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    end = cut_end(True if asked.truncate is None else asked.truncate)
    embedded = await _embed(
        call, texts, NAMES, single, embedding_dim=dimensions_of(("dimensions", asked.dimensions)), truncate=end
    )
    vectors: list[Any] = await numbers(embedded.vectors)
    return EmbedAnswer(asked.model, vectors, time.perf_counter_ns() - started, 0, sum(embedded.token_counts))


async def embeddings(call: Call) -> EmbeddingsAnswer:
    """Embed a text."""
    embedded = await _embed(call, [call.body.prompt], Names("prompt"), True)
    vectors: list[Any] = await numbers(embedded.vectors)
    return EmbeddingsAnswer(vectors[0])


async def _embed(call: Call, texts: list[str], names_of: Names, single: bool, **options: Any) -> Embedded:
    asked: Common = call.body
    task = names.task_of(call.service, {"model": asked.model}, {}, {})
    max_tokens = token_limit("options.num_ctx", asked.options.num_ctx) if asked.options else None
    return await call.embed(texts, options_of(task, max_tokens=max_tokens, **options), names_of, single)


async def running(_: Call) -> Response:
    """Say that the server is there, in the words that clients look for."""
    return PlainTextResponse("Ollama is running")


async def show(call: Call) -> ShowAnswer:
    """Say what the model is."""
    asked: ShowRequest = call.body
    name = agreed(("model", asked.model, asked.model or None), ("name", asked.name, asked.name or None))
    if name is None:
        raise ValueError("model: it is missing; /api/tags lists the names")
    names.task_in(name, call.service)
    facts = {"context_length": call.service.engine.tokenizer.max_tokens, "embedding_length": EMBEDDING_DIMS[0]}
    model_info = {"general.architecture": FAMILY} | {f"{FAMILY}.{fact}": value for fact, value in facts.items()}
    return ShowAnswer(_details(call.service), model_info, ["embedding"])


async def tags(call: Call) -> Tags:
    """List the names that requests may use."""
    details = _details(call.service)
    return Tags([Tag(name, name, details) for name in names.listed()])


def _details(service: Service) -> dict[str, Any]:
    return {"family": FAMILY, "parameter_size": "300M", "quantization_level": service.engine.number_format}


async def version(call: Call) -> Version:
    """Return a version of Ollama that has these operations."""
    return Version(VERSION)


API = Api("Ollama", error)
OPERATIONS = [
    Operation(API, "POST", "/api/embed", "Embed texts.", embed, EmbedRequest, EmbedAnswer),
    Operation(API, "POST", "/api/embeddings", "Embed a text.", embeddings, EmbeddingsRequest, EmbeddingsAnswer),
    Operation(API, "POST", "/api/show", "Say what the model is.", show, ShowRequest, ShowAnswer),
    # Open, as programs look without a key whether the server is there.
    Operation(API, "GET", "/", "Say that the server is there.", running, is_open=True, while_loading=True),
    Operation(API, "GET", "/api/tags", "List the model's names, one for each task.", tags, answers=Tags),
    Operation(API, "GET", "/api/version", "Say which of Ollama's versions has this API.", version, answers=Version),
]
