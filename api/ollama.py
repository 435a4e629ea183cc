"""Ollama's API: POST /api/embed and the older /api/embeddings, and what programs ask first to see what is served.

The model's name carries the task.
"""

import time
from typing import Any

import msgspec
from starlette.responses import PlainTextResponse, Response

from api import names
from api.fields import Whole, agreed, chunking_asked, cut_end, dimensions_of, token_limit
from api.operations import Answer, Api, Call, Operation, chunks_of, numbers, options_of, texts_of
from api.refusal import Refusal
from service import Embedded, Service
from texts.options import EMBEDDING_DIMS
from texts.request import Names, Texts

VERSION = "0.13.0"
"""Clients look at the version to see what it can do."""
# What Ollama calls the architecture of each generation, and how many parameters it has.
FAMILIES = {1: ("gemma3", "300M"), 2: ("embeddinggemma2", "271M")}
NAMES = Names("input", "input[{}]")


# What Ollama's options say beside `num_ctx`: how it writes texts, or which of a machine's parts it uses.
IGNORED_OPTIONS = [
    "num_keep",
    "seed",
    "num_predict",
    "top_k",
    "top_p",
    "min_p",
    "tfs_z",
    "typical_p",
    "repeat_last_n",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
    "penalize_newline",
    "stop",
    "draft_num_predict",
    "numa",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "embedding_only",
    "use_mmap",
    "use_mlock",
    "num_thread",
]
Options = msgspec.defstruct(
    "Options",
    [("num_ctx", Whole | None, None), *((name, Any, None) for name in IGNORED_OPTIONS)],
    forbid_unknown_fields=True,
)
Options.__doc__ = "`num_ctx` cuts texts; nothing else has an effect here."


class Common(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The fields beside the texts. `keep_alive` and `stream`, which control Ollama itself, change nothing."""

    model: str
    options: Options | None = None  # type: ignore[valid-type]
    keep_alive: str | float | None = None
    stream: bool | None = None


class EmbedRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """A text or a list of texts; the last three fields are this server's own."""

    input: str | list[str]
    truncate: bool | str | None = None
    dimensions: Whole | None = None
    chunk: Whole | None = None
    overlap: Whole | None = None
    late_chunking: bool | None = None


class EmbeddingsRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """A text."""

    prompt: str


class ShowRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The model's name, formerly called `name`. The other fields are about models that write texts."""

    model: str | None = None
    name: str | None = None
    verbose: Any = None
    system: Any = None
    template: Any = None
    options: Any = None


class EmbedAnswer(msgspec.Struct):
    """The vectors, nanoseconds, and the tokens that the model read; for `chunks` see /v1/embeddings."""

    model: str
    embeddings: list[list[float]]
    total_duration: int
    load_duration: int
    prompt_eval_count: int
    chunks: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


class EmbeddingsAnswer(msgspec.Struct):
    """The vector."""

    embedding: list[float]


class ShowAnswer(msgspec.Struct):
    """A description of the model."""

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


async def embed(call: Call) -> Answer:
    """Embed a text or a list of texts."""
    started = time.perf_counter_ns()
    asked: EmbedRequest = call.body
    end = cut_end(True if asked.truncate is None else asked.truncate)
    dimensions = dimensions_of(("dimensions", asked.dimensions))
    limit = ("options.num_ctx", asked.options.num_ctx if asked.options else None)
    chunking = chunking_asked(asked.chunk, asked.overlap, asked.late_chunking, limit)
    texts = texts_of(asked.input, NAMES)
    embedded = await _embed(call, texts, embedding_dim=dimensions, truncate=end, chunking=chunking)

    def write() -> EmbedAnswer:
        vectors = numbers(embedded.vectors)
        duration = time.perf_counter_ns() - started
        return EmbedAnswer(asked.model, vectors, duration, 0, embedded.tokens, chunks_of(embedded))

    return Answer(write, [embedded])


async def embeddings(call: Call) -> Answer:
    """Embed a text."""
    embedded = await _embed(call, texts_of(call.body.prompt, Names("prompt")))
    return Answer(lambda: EmbeddingsAnswer(numbers(embedded.vectors)[0]), [embedded])


async def _embed(call: Call, texts: Texts, **options: Any) -> Embedded:
    asked: Common = call.body
    task = names.task_of(call.service, {"model": asked.model}, {}, {})
    max_tokens = token_limit("options.num_ctx", asked.options.num_ctx) if asked.options else None
    return await call.service.embed(texts, options_of(task, max_tokens=max_tokens, **options))


async def running(_: Call) -> Response:
    """Say that the server is up, in the words that clients look for."""
    return PlainTextResponse("Ollama is running")


async def show(call: Call) -> ShowAnswer:
    """Describe the model."""
    asked: ShowRequest = call.body
    name = agreed(("model", asked.model, asked.model or None), ("name", asked.name, asked.name or None))
    if name is None:
        raise ValueError("model: it is missing; /api/tags lists the names")
    names.task_in(name, call.service)
    facts = {"context_length": call.service.engine.tokenizer.max_tokens, "embedding_length": EMBEDDING_DIMS[0]}
    family, _ = FAMILIES[call.service.engine.tokenizer.generation]
    model_info = {"general.architecture": family} | {f"{family}.{fact}": value for fact, value in facts.items()}
    return ShowAnswer(_details(call.service), model_info, ["embedding"])


async def tags(call: Call) -> Tags:
    """List the names that requests may use."""
    details = _details(call.service)
    return Tags([Tag(name, name, details) for name in names.listed(call.service)])


def _details(service: Service) -> dict[str, Any]:
    family, size = FAMILIES[service.engine.tokenizer.generation]
    return {"family": family, "parameter_size": size, "quantization_level": service.engine.number_format}


async def version(call: Call) -> Version:
    """Return a version of Ollama that has these operations."""
    return Version(VERSION)


API = Api("Ollama", error)
OPERATIONS = [
    Operation(API, "POST", "/api/embed", "Embed texts.", embed, EmbedRequest, EmbedAnswer),
    Operation(API, "POST", "/api/embeddings", "Embed a text.", embeddings, EmbeddingsRequest, EmbeddingsAnswer),
    Operation(API, "POST", "/api/show", "Say what the model is.", show, ShowRequest, ShowAnswer),
    # Open, as programs check without a key whether the server is up.
    Operation(API, "GET", "/", "Say that the server is there.", running, is_open=True, while_loading=True),
    Operation(API, "GET", "/api/tags", "List the model's names, one for each task.", tags, answers=Tags),
    Operation(API, "GET", "/api/version", "Say which of Ollama's versions has this API.", version, answers=Version),
]
