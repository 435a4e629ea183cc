"""OpenAI's API, POST /v1/embeddings and GET /v1/models, with the additional fields of Jina, Voyage and vLLM."""

from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal, cast

import msgspec

import encoding
from api import names
from api.fields import SIDES, Whole, agreed, chunking_asked, cut_end, dimensions_of, one_of, token_limit
from api.operations import Answer, Api, Call, Operation, base64s, chunks_of, numbers, texts_of
from api.refusal import Refusal
from batching.pools import TOKEN_IDS, run_in_pieces
from engine.pieces import Pieces
from engine.tokenizer import Truncate
from service import Service, TooLong
from texts.limits import MAX_TEXTS
from texts.options import Options
from texts.request import Names, Texts, check_count

# The names that Jina and Voyage give to tasks.
TASKS: names.Tasks = {
    "retrieval.query": "retrieval_query",
    "retrieval.passage": "retrieval_document",
    "text-matching": "semantic_similarity",
    "separation": "clustering",
    "query": "retrieval_query",
    "document": "retrieval_document",
    "code.query": "code_retrieval",
    "code.passage": "retrieval_document",
    **names.OUR_TASKS,
}
# Voyage's names for precisions; Jina has them and OpenAI's formats in one field.
PRECISIONS = {"float": "float32"} | {name: name for name in encoding.WIRE_DTYPES}
FORMATS = {"float": "float32", "base64": "float32"}
UNKNOWN_IDS = (
    "token ids of another model's tokenizer would give vectors of another text; send strings (langchain-openai: "
    "check_embedding_ctx_length=False), or with ids of this model's own tokenizer send the model's name as 'tokenizer'"
)
# Where texts are cut, one given as ids may have this many times the model's limit: many clients cut texts to 8,191 ids,
# as OpenAI's models do.
MOST_LIMITS = 4
NAMES = Names("input", "input[{}]", "titles[0]", "titles[{}]")


class EmbeddingsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's fields, then those of Jina, Voyage and vLLM, then this server's own."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Whole | None = None

    task: str | None = None
    input_type: str | None = None
    truncate: bool | Literal["end", "start", "none"] | None = None
    truncation: bool | None = None
    truncate_prompt_tokens: Whole | None = None
    truncation_side: Literal["left", "right"] | None = None
    output_dimension: Whole | None = None
    output_dtype: str | None = None
    embedding_type: str | None = None
    normalized: bool = True
    late_chunking: bool = False
    return_multivector: bool = False

    tokenizer: str | None = None  # the model whose token ids `input` has
    chunk: Whole | None = None
    overlap: Whole = 0

    # What `_choices` does not read.
    titles: list[str | None] | None = None
    user: str | None = None

    @property
    def is_one_document(self) -> bool:
        """Whether the texts are one document's chunks, as Jina means `late_chunking`; `chunk` gives it our meaning."""
        return self.late_chunking and self.chunk is None


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
    """The vectors in the order of the input; `model` says which weights computed them.

    With `chunk` in the request, `chunks` has [text, start, end] of each vector: characters of that text of the input.
    """

    data: list[Embedding]
    model: str
    usage: Usage
    object: str = "list"
    chunks: list[list[int]] | msgspec.UnsetType = msgspec.UNSET


class Model(msgspec.Struct):
    """A name that requests may use, and, as in vLLM, the most tokens of a text, prompt included."""

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


async def embeddings(call: Call) -> Answer:
    """Embed a text or a list of texts."""
    asked: EmbeddingsRequest = call.body
    options, is_base64 = _choices(call.service, *msgspec.structs.astuple(asked)[1:-2])
    if isinstance(asked.input, list) and any(not isinstance(item, str) for item in asked.input[:MAX_TEXTS]):
        ids = len(asked.input) + sum(len(item) for item in asked.input[:MAX_TEXTS] if isinstance(item, list))
        decoding = _decoded(asked.input, asked.titles, asked.tokenizer, options, call.service)
        texts = await run_in_pieces(TOKEN_IDS, ids, decoding)
    else:
        texts = texts_of(cast(str | list[str], asked.input), NAMES, asked.titles)
    if asked.is_one_document and len(texts.texts) > 1:
        texts = replace(texts, documents=[len(texts.texts)])
    embedded = await call.service.embed(texts, options)

    def write() -> EmbeddingsAnswer:
        vectors = (base64s if is_base64 else numbers)(embedded.vectors)
        data = [Embedding(index, vector) for index, vector in enumerate(vectors)]
        usage = Usage(embedded.tokens, embedded.tokens)
        return EmbeddingsAnswer(data, call.service.model, usage, chunks=chunks_of(embedded))

    return Answer(write, [embedded])


def _decoded(
    given: list[Any], titles: list[str | None] | None, tokenizer: str | None, options: Options, service: Service
) -> Pieces[Texts]:
    """Return the texts of token ids, where the request says that they are this model's.

    Raises TooLong for ids of a text that would be refused, or is absurdly long, before the text is made.
    """
    single = isinstance(given[0], int)
    items: list[Any] = [given] if single else given
    check_count(items, "input")
    limit = service.engine.tokenizer.max_tokens
    most = limit if options.truncate == "none" else MOST_LIMITS * limit
    texts: list[str] = []
    decoded = 0
    for position, item in enumerate(items):
        name = "input" if single else f"input[{position}]"
        if isinstance(item, str):
            texts.append(item)
            continue
        if not isinstance(item, list) or not item or not all(isinstance(each, int) for each in item):
            raise ValueError(f"{name}: it is neither a text nor a list of token ids; give a string")
        if tokenizer is None:
            raise ValueError(f"{name}: {UNKNOWN_IDS}")
        if len(item) > most:
            raise TooLong(f"{name}: has {len(item):,} token ids and the limit is {most:,}; send fewer, or the text")
        try:
            texts.append(service.engine.tokenizer.decode(item))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        decoded += len(item)
        if decoded > TOKEN_IDS.at_once:
            decoded = 0
            yield
    return Texts(texts, titles, single, NAMES)


@lru_cache(1024)
def _choices(service: Service, *fields: Any) -> tuple[Options, bool]:
    """Return the options that the fields between `input` and `titles` ask for, and whether vectors are sent as base64.

    Reading the fields takes longer than finding a vector in the cache, and most requests ask for the same.
    """
    asked = EmbeddingsRequest("", *fields)
    precision, is_base64 = _number_format(asked)
    return _options(asked, precision, service), is_base64


def _number_format(asked: EmbeddingsRequest) -> tuple[str, bool]:
    """Return the precision, and whether the vectors are sent as base64.

    Only float32 can be: OpenAI's clients ask for base64 unless told otherwise, and before version 7 the client in
    JavaScript reads any answer as base64 of float32, even lists of numbers.
    """
    mixed = one_of("embedding_type", asked.embedding_type, FORMATS | PRECISIONS, "")
    output = one_of("output_dtype", asked.output_dtype, PRECISIONS, "")
    precision = agreed(
        ("embedding_type", mixed, (FORMATS | PRECISIONS).get(mixed)), ("output_dtype", output, PRECISIONS.get(output))
    )
    form = agreed(
        ("encoding_format", asked.encoding_format, asked.encoding_format),
        ("embedding_type", mixed, mixed if mixed in FORMATS else None),
    )
    if form == "base64" and precision not in (None, "float32"):
        raise ValueError(
            f"encoding_format: 'base64' has only float32 numbers, and {precision!r} is asked for, too; send "
            "encoding_format 'float' to get them as a list (OpenAI's clients ask for base64 unless it is sent)"
        )
    return precision or "float32", form == "base64"


def _options(asked: EmbeddingsRequest, precision: str, service: Service) -> Options:
    limit = ("truncate_prompt_tokens", asked.truncate_prompt_tokens)
    if asked.is_one_document and asked.truncate_prompt_tokens is not None:
        raise ValueError("truncate_prompt_tokens: a document's chunks are not cut; leave it out, or late_chunking")
    if asked.return_multivector:
        raise ValueError("return_multivector: this model has one vector for a text; leave it out")
    known = (*names.aliases(service), service.name)
    if asked.tokenizer not in (None, *known):
        raise ValueError(f"tokenizer: {asked.tokenizer!r:.80} is another model's; send texts, or {known[0]!r}")
    fields = {"task": asked.task, "input_type": asked.input_type}
    return Options(
        names.task_of(service, {"model": asked.model}, fields, TASKS),
        embedding_dim=dimensions_of(("dimensions", asked.dimensions), ("output_dimension", asked.output_dimension)),
        normalize=asked.normalized,
        precision=precision,
        truncate=_truncate(asked),
        chunking=chunking_asked(asked.chunk, asked.overlap, asked.late_chunking and not asked.is_one_document, limit),
        max_tokens=token_limit("truncate_prompt_tokens", _tokens(asked)),
    )


def _tokens(asked: EmbeddingsRequest) -> Whole | None:
    """Return the tokens to cut a text to; None for the model's limit, which vLLM calls -1."""
    return None if asked.truncate_prompt_tokens == -1 else asked.truncate_prompt_tokens


def _truncate(asked: EmbeddingsRequest) -> Truncate:
    """Return the end to cut. OpenAI refuses a text that is too long; Jina, Voyage and vLLM have fields to cut it."""
    tokens, side = asked.truncate_prompt_tokens, asked.truncation_side
    switches = (("truncate", asked.truncate), ("truncation", asked.truncation), ("truncate_prompt_tokens", tokens))
    sent = [(field, value) for field, value in switches if value is not None]
    if side is None:
        return agreed(*((field, value, _end(value)) for field, value in sent)) or "none"
    if not sent:
        raise ValueError("truncation_side: it needs truncate_prompt_tokens or truncate; send one of them, too")
    end = SIDES[side]
    return agreed(("truncation_side", side, end), *((field, value, _end(value, end)) for field, value in sent)) or end


def _end(value: bool | str | Whole, default: Truncate = "end") -> Truncate:
    """Return the end that a field's value asks to cut: `default` where it is just true, or a number of tokens."""
    if isinstance(value, str):
        return cut_end(value)
    return "none" if value is False else default


async def models(call: Call) -> Models:
    """List the names that requests may use."""
    return Models([_model(name, call.service) for name in names.listed(call.service)])


async def model(call: Call) -> Model:
    """Return a name, if it is served."""
    names.task_in(call.path["model"], call.service)
    return _model(call.path["model"], call.service)


def _model(name: str, service: Service) -> Model:
    return Model(name, service.engine.tokenizer.max_tokens)


API = Api("OpenAI", error)
OPERATIONS = [
    Operation(API, "POST", "/v1/embeddings", "Embed texts.", embeddings, EmbeddingsRequest, EmbeddingsAnswer),
    # Open, as mteb asks without sending its key.
    Operation(API, "GET", "/v1/models", "List the model's names, one for each task.", models, None, Models, True),
    Operation(API, "GET", "/v1/models/{model:path}", "Say whether a name is served.", model, None, Model, True),
]
