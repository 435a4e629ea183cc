"""How to talk to a server in the shape of each API: our own servers, and those of others.

A request is described by the inputs of Cog's API, whichever API it goes through: `texts` or `text`, `task`, `titles`,
`embedding_dim`, `precision`, `normalize`, `output_format` and `truncate`.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

import encoding
from api import cohere, gemini, tei
from api.names import FIRST, SECOND
from tasks import PROMPTS, SECOND_PROMPT_NAMES

MODEL = FIRST[0]

TIMEOUT_S = 600
MISREAD = (ValueError, LookupError, TypeError, AttributeError)
"""What reading an answer of another shape raises."""
Inputs = Mapping[str, Any]


class AskError(RuntimeError):
    """A server that cannot be asked: what was asked of it, what it said, and the remedy."""


class Refused(AskError):
    """A request that a server refused: HTTP's status, and its words."""

    def __init__(self, status: int, words: str) -> None:
        self.status = status
        super().__init__(f"HTTP {status}: {words[:300]}")


@dataclass(frozen=True, slots=True)
class Answered:
    """Vectors, float64 [texts, width], NaN where the answer has null; `said_cut` where it says that a text was cut."""

    vectors: np.ndarray
    said_cut: bool


@dataclass(frozen=True, slots=True)
class Dialect:
    """The shapes of one API. `path` may hold the model's name."""

    path: str
    body: Callable[..., dict[str, Any]]
    """Of inputs and, unless it is the usual one, the model's name."""
    embedding: Callable[[Any], Any]
    """The vectors as an answer has them: the same whenever the request is."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """The API's own names of our tasks. An API without such names may take a task behind the model's name."""
    models: str | None = None
    """Where the names of the models are listed."""
    takes_title: bool = False
    can_refuse: bool = True
    own_prompts: bool = False
    """Whether each server has prompts by names of its own, so that it may refuse some of `tasks`."""

    def vectors(self, answer: Any, inputs: Inputs) -> np.ndarray:
        """Return the answer's vectors, [n, width] in the precision asked for, NaN where it has null.

        Raises ValueError, LookupError or TypeError for an answer of another shape.
        """
        rows, dtype = self.embedding(answer), encoding.WIRE_DTYPES[inputs.get("precision", "float32")]
        if isinstance(rows, str):  # base64 of all vectors, as Cog's API has it
            return np.atleast_2d(encoding.decode(answer))
        if isinstance(rows[0], str):  # which some servers send unasked
            return np.stack([np.frombuffer(base64.b64decode(row), dtype) for row in rows])
        return np.array(rows, dtype, ndmin=2 if "text" in inputs else 0)


def _by_task(names: Mapping[str, str | None]) -> dict[str, str]:
    """Return for each task the first of an API's names that ask for it."""
    return {task: name for name, task in reversed(list(names.items())) if task}


# Each API's own names. Ours, which our server takes besides, mean nothing to others.
GEMINI = _by_task(gemini.TASKS)
COHERE = _by_task(
    {name: cohere.TASKS[name] for name in ("search_document", "search_query", "classification", "clustering")}
)
TEI = _by_task({name: tei.TASKS[name] for name in (*SECOND_PROMPT_NAMES, "none")})


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _texts(inputs: Inputs) -> Any:
    return inputs["text"] if "text" in inputs else inputs["texts"]


def _with_task(model: str, inputs: Inputs) -> str:
    return f"{model}:{inputs['task']}" if "task" in inputs else model


def _cuts(inputs: Inputs) -> bool | None:
    return inputs["truncate"] != "none" if "truncate" in inputs else None


def _cog(inputs: Inputs, model: str = MODEL) -> dict[str, Any]:
    return {"input": inputs}


def _cog_embedding(answer: Any) -> Any:
    if answer["status"] != "succeeded":
        raise ValueError(str(answer.get("error"))[:60])
    return answer["output"]["embedding"]


def _openai(inputs: Inputs, model: str = MODEL) -> dict[str, Any]:
    precision = inputs.get("precision")
    is_base64 = inputs.get("output_format") != "array" and precision in (None, "float32")
    fields = _given(
        dimensions=inputs.get("embedding_dim"),
        output_dtype=precision,
        normalized=inputs.get("normalize"),
        truncate=_cuts(inputs) or None,  # the API refuses by itself and has no field for that
    )
    return {
        "model": _with_task(model, inputs),
        "input": _texts(inputs),
        "encoding_format": "base64" if is_base64 else "float",
    } | fields


def _openai_embedding(answer: Any) -> list[Any]:
    """Return the vectors in the order of the texts, which is in `index`; some servers leave it out."""
    return [each["embedding"] for each in sorted(answer["data"], key=lambda each: each.get("index", 0))]


def _gemini(inputs: Inputs, model: str = MODEL) -> dict[str, Any]:
    fields = _given(
        taskType=GEMINI.get(inputs.get("task", "")),
        outputDimensionality=inputs.get("embedding_dim"),
        autoTruncate=_cuts(inputs),
    )
    titles = inputs.get("titles") or [None] * len(inputs["texts"])
    requests = [
        {"model": f"models/{model}", "content": {"parts": [{"text": text}]}} | fields | _given(title=title)
        for text, title in zip(inputs["texts"], titles, strict=True)
    ]
    return {"requests": requests}


def _tei(inputs: Inputs, model: str = MODEL) -> dict[str, Any]:
    task = TEI.get(inputs.get("task", ""))
    fields = _given(prompt_name=task, dimensions=inputs.get("embedding_dim"), truncate=_cuts(inputs))
    return {"inputs": _texts(inputs)} | fields


def _ollama(inputs: Inputs, model: str = MODEL) -> dict[str, Any]:
    fields = _given(dimensions=inputs.get("embedding_dim"), truncate=_cuts(inputs))
    return {"model": _with_task(model, inputs), "input": _texts(inputs)} | fields


def _cohere(inputs: Inputs, model: str = MODEL) -> dict[str, Any]:
    truncate = {None: None, False: "NONE", True: "END"}[_cuts(inputs)]
    task = COHERE[inputs.get("task", "retrieval_document")]  # the API wants one
    fields = _given(output_dimension=inputs.get("embedding_dim"), truncate=truncate)
    return {"model": model, "texts": inputs["texts"], "input_type": task, "embedding_types": ["float"]} | fields


DIALECTS = {
    "cog": Dialect("/predictions", _cog, _cog_embedding, {task: task for task in PROMPTS}, takes_title=True),
    "openai": Dialect("/v1/embeddings", _openai, _openai_embedding, models="/v1/models", can_refuse=False),
    "gemini": Dialect(
        "/v1beta/models/{model}:batchEmbedContents",
        _gemini,
        lambda answer: [each["values"] for each in answer["embeddings"]],
        GEMINI,
        takes_title=True,
    ),
    "tei": Dialect("/embed", _tei, lambda answer: answer, TEI, own_prompts=True),
    "ollama": Dialect("/api/embed", _ollama, lambda answer: answer["embeddings"], models="/api/tags"),
    "cohere": Dialect("/v2/embed", _cohere, lambda answer: answer["embeddings"]["float"], COHERE),
}


class Client:
    """A client of one server, through one API."""

    def __init__(
        self, url: str, api: str, model: str | None = None, key: str | None = None, timeout_s: float = TIMEOUT_S,
        generation: int = 1,
    ) -> None:  # fmt: skip
        """Find the name of the model, EmbeddingGemma 1 or 2 by its `generation`.

        Raises AskError where the server does not answer, or lists several other models, and for a key that no header
        can carry.
        """
        self.url, self.name, self.dialect = url.rstrip("/"), api, DIALECTS[api]
        if key and not (key.isascii() and key.isprintable()):
            raise AskError("key: it is not of ASCII's characters, and a header takes no others; give the server's key")
        headers = {"Authorization": f"Bearer {key}", "x-goog-api-key": key} if key else {}
        no_connections = httpx.Limits(max_keepalive_connections=0)  # a server that ends would wait for them
        self._client = httpx.Client(timeout=timeout_s, headers=headers, limits=no_connections)
        listed = self._listed() if self.dialect.models else []
        usual = MODEL if generation == 1 else SECOND[0]
        self.model = model or (_choose(listed, self.url, generation) if listed else usual)
        self.tasks = {*self.dialect.tasks, *(task for task in PROMPTS if f"{self.model}:{task}" in listed)}
        """The tasks that a request can name."""

    def forget_unknown_tasks(self) -> list[str]:
        """Leave out the tasks that the server refuses, where it has prompts of its own, and return them."""
        unknown = []
        for task in sorted(self.tasks) if self.dialect.own_prompts else ():
            try:
                self.ask(["a"], task)
            except Refused as refusal:
                if refusal.status < 500:
                    unknown.append(task)
        self.tasks.difference_update(unknown)
        return unknown

    def ask(
        self,
        texts: Sequence[str],
        task: str | None = None,
        title: str | None = None,
        dimensions: int | None = None,
        refuse: bool | None = None,
    ) -> Answered:
        """Return the vectors of the texts; `refuse` asks for an error in place of a cut.

        A task or title that the API has no place for is left out. Raises Refused, and AskError for an answer of another
        shape.
        """
        inputs = {"texts": list(texts), "output_format": "array"} | _given(
            task=task if task in self.tasks else None,
            titles=[title] * len(texts) if title and self.dialect.takes_title else None,
            embedding_dim=dimensions,
            truncate=None if refuse is None else "none" if refuse else "end",
        )
        answer, said_cut = self.send(inputs)
        try:
            vectors = self.dialect.vectors(answer, inputs).astype(np.float64)
            if vectors.ndim != 2:
                raise ValueError(f"vectors of shape {vectors.shape}")
        except MISREAD as error:
            raise self._other_shape(error) from error
        if len(vectors) != len(texts):
            raise AskError(f"{self._url}: {len(vectors)} vectors for {len(texts)} texts; one for each was expected")
        return Answered(vectors, said_cut)

    def send(self, inputs: Inputs) -> tuple[Any, bool]:
        """Return the answer's JSON, and whether it says that a text was cut. Raises Refused, or AskError."""
        try:
            answer = self._client.post(self._url, json=self.dialect.body(inputs, self.model))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AskError(f"{self._url}: {error}; is a server running there?") from error
        if answer.status_code != 200:
            raise Refused(answer.status_code, answer.text)
        said_cut = "x-truncated" in answer.headers
        try:
            content = answer.json()  # Python's reads NaN, too
            if self.name == "cog":
                if content.get("status") != "succeeded":
                    raise Refused(422, str(content.get("error")))
                said_cut = bool(content["output"].get("truncated"))
        except MISREAD as error:
            raise self._other_shape(error) from error
        return content, said_cut

    @property
    def _url(self) -> str:
        return self.url + self.dialect.path.format(model=self.model)

    def _other_shape(self, error: Exception) -> AskError:
        return AskError(f"{self._url}: the answer is not {self.name}'s ({error!r}); check --url and --api")

    def _listed(self) -> list[str]:
        url = f"{self.url}{self.dialect.models}"
        try:
            answer = self._client.get(url)
            if answer.status_code != 200:
                return []  # a server may do without a list
            content = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise AskError(f"{url}: {error}; is a server running there?") from error
        entries = content.get("data") or content.get("models") or []
        return [str(entry.get("id") or entry.get("name")) for entry in entries]


def _choose(listed: Sequence[str], url: str, generation: int) -> str:
    """Return the name of our model in a list: the shortest, as those with a task behind them are longer."""
    plain = {name: re.sub("[-_:]", "", name.lower()) for name in listed}
    ours = [name for name in listed if "embeddinggemma" in plain[name]]
    if ours:
        of_generation = [name for name in ours if ("embeddinggemma2" in plain[name]) == (generation == 2)]
        return min(of_generation or ours, key=len)
    if len(listed) == 1:
        return listed[0]
    raise AskError(f"{url} has the models {', '.join(listed[:10])}; name the one to judge with --model")
