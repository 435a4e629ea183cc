"""The API of Hugging Face's text-embeddings-inference (TEI)."""

from typing import Any, Literal, cast

import msgspec

from api.fields import SIDES, URL_EXTRAS, Whole, agreed, cut_end, dimensions_of, one_of
from api.names import MODEL, task_of
from api.operations import Api, Call, Operation, numbers, options_of
from api.refusal import Refusal
from engine.threads import usable_threads
from engine.tokenizer import Truncate
from service import CHARACTERS_ON_LOOP, Service, off_loop
from tasks import PROMPT_NAMES, PROMPTS, TITLED_TASK, prompt_for
from texts.options import Options
from texts.request import MAX_TEXTS, Names, check_texts

NAMES = Names("inputs", "inputs[{}]")
TASKS = PROMPT_NAMES | {task: task for task in PROMPTS}
VERSION = "1.9.3"
"""For clients that look at the version for what it has: since 1.9 texts are cut unless a request says otherwise."""
AUTO_TRUNCATE = True
SWITCHES = {"true": True, "false": False}


class HubOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What the clients of Hugging Face's own servers send beside a request. It changes nothing here."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None
    use_gpu: bool | None = None
    dont_load_model: bool | None = None


class Parameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How texts are embedded; `prompt_name` is a task, or one of sentence-transformers' names for its prompt."""

    prompt_name: str | None = None
    dimensions: Whole | None = None
    normalize: bool | None = None
    truncate: bool | str | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    encoding_format: str | None = None


class Common(Parameters, forbid_unknown_fields=True, kw_only=True):
    """Parameters are beside the texts as TEI has them, in an object of their own as other clients do, or in the URL."""

    parameters: Parameters | None = None
    options: HubOptions | None = None


class EmbedRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """A text or a list of them."""

    inputs: str | list[str]


class Sentences(msgspec.Struct, forbid_unknown_fields=True):
    """A text, and those to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """Texts to compare; without a `prompt_name` the task is semantic_similarity."""

    inputs: Sentences


class EmbedOrCompareRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """What huggingface_hub posts to /: a request of /embed, or one of /similarity."""

    inputs: str | list[str] | Sentences


class TokenParameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How texts are cut into tokens: without a prompt unless `prompt_name` asks for one."""

    prompt_name: str | None = None
    add_special_tokens: bool | None = None


class TokenizeRequest(TokenParameters, forbid_unknown_fields=True, kw_only=True):
    """Texts to cut into tokens."""

    inputs: str | list[str]


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


class Said:
    """What a request says in its body, in the body's `parameters` and in its URL."""

    def __init__(self, call: Call, kind: type[msgspec.Struct]) -> None:
        """Raises msgspec.ValidationError for what the URL has and `kind` has not."""
        self._service = call.service
        self._places: list[tuple[str, Any]] = [("", call.body)]
        if nested := getattr(call.body, "parameters", None):
            self._places.append(("parameters.", nested))
        in_url = [(field, value) for field, value in call.query.multi_items() if field not in URL_EXTRAS]
        if len(dict(in_url)) < len(in_url):
            raise ValueError("URL: it has a field more than once; give each once")
        self._places.append(("URL.", msgspec.convert(dict(in_url), kind, strict=False)))

    def all(self, field: str) -> dict[str, Any]:
        """Return the values of a field that were sent, each by where it stands."""
        said = {f"{place}{field}": getattr(fields, field) for place, fields in self._places}
        return {name: value for name, value in said.items() if value is not None}

    def one(self, field: str) -> Any:
        """Return the value of a field that was sent, None if none was. Raises ValueError where two differ."""
        return agreed(*((name, value, _switch(value)) for name, value in self.all(field).items()))

    def task(self) -> str | None:
        """Return the task, None if none was sent. Raises ValueError where two differ."""
        return task_of(self._service, {}, self.all("prompt_name"), TASKS)

    def options(self, default_task: str = TITLED_TASK) -> Options:
        """Return the options. Raises ValueError where two places differ."""
        one_of("encoding_format", self.one("encoding_format"), ("float",))
        return options_of(
            self.task(),
            default_task=default_task,
            embedding_dim=dimensions_of(*self.all("dimensions").items()),
            normalize=self.one("normalize") is not False,
            truncate=self._truncate(),
        )

    def _truncate(self) -> Truncate:
        """Return the end to cut. `truncate` may name it, too."""
        truncate, direction = self.one("truncate"), self.one("truncation_direction")
        end = cut_end(AUTO_TRUNCATE if truncate is None else truncate)
        if direction is None or end == "none":
            return end
        named = end if isinstance(truncate, str) else None
        side = SIDES[direction]
        return agreed(("truncate", truncate, named), ("truncation_direction", direction, side)) or side


def _switch(value: Any) -> Any:
    """Return a value without regard to case, and what stands for true and false in a URL."""
    return SWITCHES.get(value.lower(), value.lower()) if isinstance(value, str) else value


async def embed(call: Call) -> list[list[float]]:
    """Embed a text or a list of them."""
    inputs: str | list[str] = call.body.inputs
    options = Said(call, Parameters).options()
    single = isinstance(inputs, str)
    embedded = await call.embed([inputs] if isinstance(inputs, str) else inputs, options, NAMES, single)
    call.headers["x-compute-tokens"] = str(sum(embedded.token_counts))
    return cast(list[list[float]], await numbers(embedded.vectors))


async def embed_or_compare(call: Call) -> list[list[float]] | list[float]:
    """Embed texts, or compare them, as the body asks."""
    return await (similarity if isinstance(call.body.inputs, Sentences) else embed)(call)


async def similarity(call: Call) -> list[float]:
    """Return the cosine of the source sentence and each of the sentences."""
    inputs: Sentences = call.body.inputs
    options = Said(call, Parameters).options("semantic_similarity")
    one = await call.embed([inputs.source_sentence], options, Names("inputs.source_sentence"), single=True)
    others = await call.embed(inputs.sentences, options, Names(texts="inputs.sentences[{}]"))
    call.truncated = [*one.truncated, *(1 + i for i in others.truncated)]
    call.prompted = [*one.prompted, *(1 + i for i in others.prompted)]
    return cast(list[float], (others.vectors @ one.vectors).tolist())


async def tokenize(call: Call) -> list[list[Token]]:
    """Return the tokens of each text, uncut."""
    asked: TokenizeRequest = call.body
    single = isinstance(asked.inputs, str)
    texts = check_texts([asked.inputs] if single else asked.inputs, single=single, names=NAMES)
    said = Said(call, TokenParameters)
    prompt = prompt_for(said.task() or "none")
    is_large = sum(map(len, texts.texts)) > CHARACTERS_ON_LOOP
    add_special_tokens = said.one("add_special_tokens") is not False
    return await off_loop(is_large, _tokens, call.service, prompt, texts.texts, add_special_tokens)


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
        "auto_truncate": AUTO_TRUNCATE,
        "tokenization_workers": usable_threads(),
        "version": VERSION,
        "sha": None,
        "docker_label": None,
    }


API = Api("TEI", error, {"invalid": 422, "body": 422, "long": 413, "failed": 424})
OPERATIONS = [
    Operation(API, "POST", path, summary, handle, asks, answers, in_url=in_url)
    for path, summary, handle, asks, answers, in_url in (
        ("/embed", "Embed texts.", embed, EmbedRequest, list[list[float]], Parameters),
        (
            "/",
            "Embed or compare texts.",
            embed_or_compare,
            EmbedOrCompareRequest,
            list[list[float] | float],
            Parameters,
        ),
        ("/similarity", "Compare a text with others.", similarity, SimilarityRequest, list[float], Parameters),
        ("/tokenize", "Cut texts into tokens.", tokenize, TokenizeRequest, list[list[Token]], TokenParameters),
    )
] + [Operation(API, "GET", "/info", "Say what is served.", info, answers=dict[str, Any])]
