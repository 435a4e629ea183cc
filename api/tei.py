"""The API of Hugging Face's text-embeddings-inference (TEI)."""

from array import array
from typing import Any, Literal

import msgspec

from api.fields import SIDES, URL_EXTRAS, Whole, agreed, cut_end, dimensions_of, one_of
from api.names import OUR_TASKS, Tasks, aliases, task_of
from api.operations import Answer, Api, Call, Operation, numbers, options_of, texts_of
from api.refusal import Refusal
from batching.pools import CHARACTERS, run, run_in_pieces
from engine.pieces import Pieces
from engine.threads import usable_threads
from engine.tokenizer import TOKENS_AT_ONCE, Tokenizer, Truncate
from engine.tokenizer import Token as ModelToken
from settings.version import NAMED
from tasks import SECOND_PROMPT_NAMES, TITLED_TASK, prompt_for
from texts.limits import MAX_TEXTS
from texts.options import Options
from texts.request import TEXT_CHARS, Names, Texts

NAMES = Names("inputs", "inputs[{}]")
TASKS: Tasks = {**SECOND_PROMPT_NAMES, **OUR_TASKS}
VERSION = "1.9.3"
"""Clients look at the version to see what it can do: since 1.9 texts are cut unless a request says otherwise."""
AUTO_TRUNCATE = True
# In all texts of a call to /tokenize, whose answer has some 100 bytes for each token.
MOST_TOKENS = 1 << 18
SWITCHES = {"true": True, "false": False}


class HubOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Fields for Hugging Face's own servers. They change nothing here."""

    use_cache: bool | None = None
    wait_for_model: bool | None = None
    use_gpu: bool | None = None
    dont_load_model: bool | None = None


class Parameters(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How texts are embedded; `prompt_name` is a task, or sentence-transformers' name for its prompt."""

    prompt_name: str | None = None
    dimensions: Whole | None = None
    normalize: bool | None = None
    truncate: bool | str | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    encoding_format: str | None = None


class Common(Parameters, forbid_unknown_fields=True, kw_only=True):
    """Parameters stand beside the texts as in TEI, in an object of their own as other clients do, or in the URL."""

    parameters: Parameters | None = None
    options: HubOptions | None = None


class EmbedRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """A text or a list of texts."""

    inputs: str | list[str]


class Sentences(msgspec.Struct, forbid_unknown_fields=True):
    """A text, and the texts to compare it with."""

    source_sentence: str
    sentences: list[str]


class SimilarityRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """Texts to compare; without a `prompt_name` the task is semantic_similarity."""

    inputs: Sentences


class EmbedOrCompareRequest(Common, forbid_unknown_fields=True, kw_only=True):
    """What huggingface_hub posts to /: a request for /embed or for /similarity."""

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
    """The fields that a request sends in its body, in the body's `parameters` and in its URL."""

    def __init__(self, call: Call, kind: type[msgspec.Struct]) -> None:
        """Raises msgspec.ValidationError for a field in the URL that `kind` does not have."""
        self._service = call.service
        self._places: list[tuple[str, Any]] = [("", call.body)]
        if nested := getattr(call.body, "parameters", None):
            self._places.append(("parameters.", nested))
        in_url = [(field, value) for field, value in call.query.multi_items() if field not in URL_EXTRAS]
        if len(dict(in_url)) < len(in_url):
            raise ValueError("URL: it has a field more than once; give each once")
        self._places.append(("URL.", msgspec.convert(dict(in_url), kind, strict=False)))

    def values(self, field: str) -> dict[str, Any]:
        """Return the values that were sent of a field, by their places."""
        said = {f"{place}{field}": getattr(fields, field) for place, fields in self._places}
        return {name: value for name, value in said.items() if value is not None}

    def value(self, field: str) -> Any:
        """Return the value that was sent of a field, or None. Raises ValueError where two differ."""
        return agreed(*((name, value, _switch(value)) for name, value in self.values(field).items()))

    def task(self) -> str | None:
        """Return the task that was sent, or None. Raises ValueError where two differ."""
        return task_of(self._service, {}, self.values("prompt_name"), TASKS)

    def options(self, default_task: str = TITLED_TASK) -> Options:
        """Return the options. Raises ValueError where two places differ."""
        one_of("encoding_format", self.value("encoding_format"), ("float",))
        return options_of(
            self.task(),
            default_task=default_task,
            embedding_dim=dimensions_of(*self.values("dimensions").items()),
            normalize=self.value("normalize") is not False,
            truncate=self._truncate(),
        )

    def _truncate(self) -> Truncate:
        """Return the end to cut, which `truncate` may name too."""
        truncate, direction = self.value("truncate"), self.value("truncation_direction")
        end = cut_end(AUTO_TRUNCATE if truncate is None else truncate)
        if direction is None or end == "none":
            return end
        named = end if isinstance(truncate, str) else None
        side = SIDES[direction]
        return agreed(("truncate", truncate, named), ("truncation_direction", direction, side)) or side


def _switch(value: Any) -> Any:
    """Return a value in lower case, with true and false of a URL as booleans."""
    return SWITCHES.get(value.lower(), value.lower()) if isinstance(value, str) else value


async def embed(call: Call) -> Answer:
    """Embed a text or a list of texts."""
    options = Said(call, Parameters).options()
    embedded = await call.service.embed(texts_of(call.body.inputs, NAMES), options)
    tokens = {"x-compute-tokens": str(embedded.tokens)}
    return Answer(lambda: numbers(embedded.vectors), [embedded], extra_headers=tokens)


async def embed_or_compare(call: Call) -> Answer:
    """Embed texts, or compare them, as the body asks."""
    return await (similarity if isinstance(call.body.inputs, Sentences) else embed)(call)


async def similarity(call: Call) -> Answer:
    """Return the cosine of the source sentence and each of the sentences."""
    inputs: Sentences = call.body.inputs
    options = Said(call, Parameters).options("semantic_similarity")
    sentence = Texts([inputs.source_sentence], single=True, names=Names("inputs.source_sentence"))
    source = await call.service.embed(sentence, options)
    others = await call.service.embed(Texts(inputs.sentences, names=Names(texts="inputs.sentences[{}]")), options)
    return Answer(lambda: (others.vectors @ source.vectors).tolist(), [source, others])


async def tokenize(call: Call) -> Answer:
    """Return the tokens of each text, uncut."""
    asked: TokenizeRequest = call.body
    given = texts_of(asked.inputs, NAMES)
    texts, _ = await run(CHARACTERS, given.characters, given.checked)
    said = Said(call, TokenParameters)
    prompt = prompt_for(said.task() or "none", None, call.service.engine.tokenizer.generation)
    add_special_tokens = said.value("add_special_tokens") is not False
    prompted = [prompt + text for text in texts]
    characters = sum(map(len, prompted)) + TEXT_CHARS * len(prompted)
    pieces = _tokens(call.service.engine.tokenizer, prompted, add_special_tokens)
    lists = await run_in_pieces(CHARACTERS, characters, pieces)
    return Answer(lambda: lists, characters=characters)


def _tokens(tokenizer: Tokenizer, texts: list[str], add_special_tokens: bool) -> Pieces[list[msgspec.Raw]]:
    """Return a JSON list of the tokens of each text. Raises ValueError for more than MOST_TOKENS together."""
    count = 0
    is_countless = sum(map(len, texts)) > CHARACTERS.at_once
    for tokens in tokenizer.add_starts(texts, [array("I") for _ in texts]) if is_countless else ():
        count += tokens
        if count > MOST_TOKENS:
            raise ValueError(f"inputs: the texts have more than {MOST_TOKENS:,} tokens; send less text at once")
        yield
    answer: list[msgspec.Raw] = []
    characters = 0
    for text in texts:
        lists: list[bytes] = []
        for some in tokenizer.token_lists(text, add_special_tokens):
            lists.append(msgspec.json.encode([_token(each, text) for each in some])[1:-1])
            characters += len(some)
            if characters > TOKENS_AT_ONCE:
                characters = 0
                yield
        answer.append(msgspec.Raw(b"[%s]" % b",".join(lists)))
    return answer


def _token(token: ModelToken, text: str) -> Token:
    if token.special:
        return Token(token.id, token.text, True, None, None)
    return Token(token.id, text[token.start : token.end], False, token.start, token.end)


async def info(call: Call) -> dict[str, Any]:
    """Return what is served, and its limits."""
    engine = call.service.engine
    name, _, sha = call.service.model.partition("@")
    return {
        "model_id": name,
        "model_sha": sha,
        "model_dtype": engine.number_format,
        "model_type": {"embedding": {"pooling": "mean"}},
        "served_model_name": aliases(call.service)[0],
        "max_concurrent_requests": None,
        "max_input_length": engine.tokenizer.max_tokens,
        "max_batch_tokens": engine.batch_tokens,
        "max_batch_requests": None,
        "max_client_batch_size": MAX_TEXTS,
        "auto_truncate": AUTO_TRUNCATE,
        "tokenization_workers": usable_threads(),
        "version": VERSION,
        "sha": None,
        "docker_label": NAMED.replace(" ", "-"),
    }


API = Api("TEI", error, {"invalid": 422, "body": 422, "long": 413, "failed": 424})
OPERATIONS = [
    Operation(API, "POST", "/embed", "Embed texts.", embed, EmbedRequest, list[list[float]], in_url=Parameters),
    Operation(
        API, "POST", "/", "Embed or compare texts.", embed_or_compare, EmbedOrCompareRequest, list[list[float] | float],
        in_url=Parameters,
    ),
    Operation(
        API, "POST", "/similarity", "Compare a text with others.", similarity, SimilarityRequest, list[float],
        in_url=Parameters,
    ),
    Operation(
        API, "POST", "/tokenize", "Cut texts into tokens.", tokenize, TokenizeRequest, list[list[Token]],
        in_url=TokenParameters,
    ),
    Operation(API, "GET", "/info", "Say what is served.", info, answers=dict[str, Any]),
]  # fmt: skip
