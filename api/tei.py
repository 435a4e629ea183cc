"""The API of Hugging Face's text-embeddings-inference (TEI)."""

from typing import Any, Literal

import msgspec

from api.names import MODEL
from api.operations import Api, Call, Operation, cut_end, numbers, one_of, options_of
from api.refusal import Refusal
from engine.threads import usable_threads
from engine.tokenizer import Truncate
from service import CHARACTERS_ON_LOOP, Service, off_loop
from tasks import PROMPT_NAMES, PROMPTS, TITLED_TASK, prompt_for
from texts.options import EMBEDDING_DIMS
from texts.request import MAX_TEXTS, Names, check_texts

NAMES = Names("inputs", "inputs[{}]")
TASKS = PROMPT_NAMES | {task: task for task in PROMPTS}
VERSION = "1.8.0"
"""For clients that look at the version for what it has."""


class EmbedRequest(msgspec.Struct):
    """A text or a list of them; `prompt_name` is a task, or one of sentence-transformers' names for its prompt."""

    inputs: str | list[str]
    prompt_name: str | None = None
    dimensions: int | None = None
    normalize: bool = True
    truncate: bool | str | None = False
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"


class Sentences(msgspec.Struct):
    """A text, and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityParameters(msgspec.Struct):
    """What `EmbedRequest` has beside the texts."""

    prompt_name: str | None = None
    truncate: bool | str | None = False
    truncation_direction: Literal["left", "right", "Left", "Right"] = "right"


class SimilarityRequest(msgspec.Struct):
    """Texts to compare; without a `prompt_name` the task is semantic_similarity."""

    inputs: Sentences
    parameters: SimilarityParameters | None = None


class EmbedOrCompareRequest(EmbedRequest):
    """What huggingface_hub posts to /: a request of /embed, or one of /similarity."""

    inputs: str | list[str] | Sentences  # type: ignore[assignment]
    parameters: SimilarityParameters | None = None


class TokenizeRequest(msgspec.Struct):
    """Texts to cut into tokens, without a prompt unless `prompt_name` asks for one."""

    inputs: str | list[str]
    add_special_tokens: bool = True
    prompt_name: str | None = None


class Token(msgspec.Struct):
    """A token, whether it is `<bos>` or the like, and its characters [start, stop) of the text."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return TEI's error."""
    kinds = {"failed": "Backend", "busy": "Overloaded", "unready": "Unhealthy"}
    return {"error": refusal.message, "error_type": kinds.get(refusal.kind, "Validation")}


def _task(field: str, prompt_name: str | None, default: str) -> str:
    return TASKS[one_of(field, prompt_name, TASKS, default)]


def _truncate(asked: EmbedRequest | SimilarityParameters) -> Truncate:
    if asked.truncate is True and asked.truncation_direction.lower() == "left":
        return "start"
    return cut_end(asked.truncate or False)


async def embed(call: Call) -> list[list[float]]:
    """Embed a text or a list of them."""
    asked: EmbedRequest = call.body
    # Clients that send no prompt_name let a user write one into the URL.
    task = _task("prompt_name", asked.prompt_name or call.query.get("prompt_name"), TITLED_TASK)
    dimensions = one_of("dimensions", asked.dimensions, EMBEDDING_DIMS, EMBEDDING_DIMS[0])
    single = isinstance(asked.inputs, str)
    texts = [asked.inputs] if isinstance(asked.inputs, str) else asked.inputs
    options = options_of(task, dimensions, asked.normalize, truncate=_truncate(asked))
    embedded = await call.embed(texts, options, NAMES, single)
    call.headers["x-compute-tokens"] = str(sum(embedded.token_counts))
    return await numbers(embedded.vectors)  # type: ignore[return-value]


async def embed_or_compare(call: Call) -> list[list[float]] | list[float]:
    """Embed texts, or compare them, as the body asks."""
    return await (similarity if isinstance(call.body.inputs, Sentences) else embed)(call)


async def similarity(call: Call) -> list[float]:
    """Return the cosine of the source sentence and each of the sentences."""
    asked: SimilarityRequest | EmbedOrCompareRequest = call.body
    assert isinstance(asked.inputs, Sentences)
    parameters = asked.parameters or SimilarityParameters()
    task = _task("parameters.prompt_name", parameters.prompt_name, "semantic_similarity")
    options = options_of(task, truncate=_truncate(parameters))
    one = await call.embed([asked.inputs.source_sentence], options, Names("inputs.source_sentence"), single=True)
    others = await call.embed(asked.inputs.sentences, options, Names(texts="inputs.sentences[{}]"))
    call.truncated = [*one.truncated, *(1 + i for i in others.truncated)]
    call.prompted = [*one.prompted, *(1 + i for i in others.prompted)]
    return (others.vectors @ one.vectors).tolist()


async def tokenize(call: Call) -> list[list[Token]]:
    """Return the tokens of each text, uncut."""
    asked: TokenizeRequest = call.body
    single = isinstance(asked.inputs, str)
    texts = check_texts([asked.inputs] if single else asked.inputs, single=single, names=NAMES)
    prompt = prompt_for(_task("prompt_name", asked.prompt_name, "none"))
    is_large = sum(map(len, texts.texts)) > CHARACTERS_ON_LOOP
    return await off_loop(is_large, _tokens, call.service, prompt, texts.texts, asked.add_special_tokens)


def _tokens(service: Service, prompt: str, texts: list[str], add_special_tokens: bool) -> list[list[Token]]:
    tokenizer = service.engine.tokenizer
    return [
        [
            Token(token.id, token.text, True, None, None)
            if token.special
            else Token(token.id, (prompt + text)[token.start : token.end], False, token.start, token.end)
            for token in tokenizer.tokens(prompt + text, add_special_tokens)
        ]
        for text in texts
    ]


async def info(call: Call) -> dict[str, Any]:
    """Return what is served, and its limits."""
    engine = call.service.engine
    name, _, sha = call.service.model.partition("@")
    return {
        "model_id": name,
        "model_sha": sha,
        "model_dtype": engine.number_format,
        "model_type": {"embedding": {"pooling": "mean"}},
        "served_model_name": MODEL,
        "max_concurrent_requests": None,
        "max_input_length": engine.tokenizer.max_tokens,
        "max_batch_tokens": engine.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": MAX_TEXTS,
        "auto_truncate": False,
        "tokenization_workers": usable_threads(),
        "version": VERSION,
        "sha": None,
        "docker_label": None,
    }


API = Api("TEI", error, {"invalid": 422, "body": 422, "long": 413, "failed": 424})
Vectors = list[list[float]]
OPERATIONS = [
    Operation(API, "POST", "/embed", "Embed texts.", embed, EmbedRequest, Vectors),
    Operation(
        API, "POST", "/", "Embed or compare texts.", embed_or_compare, EmbedOrCompareRequest, list[list[float] | float]
    ),
    Operation(API, "POST", "/similarity", "Compare a text with others.", similarity, SimilarityRequest, list[float]),
    Operation(API, "POST", "/tokenize", "Cut texts into tokens.", tokenize, TokenizeRequest, list[list[Token]]),
    Operation(API, "GET", "/info", "Say what is served.", info, answers=dict[str, Any]),
]
