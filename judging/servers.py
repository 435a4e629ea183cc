"""How a server is asked in the shape of each API, and where vectors and a word about cutting are in its answers."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from tasks import PROMPT_NAMES, PROMPTS

MODEL = "embeddinggemma-300m"
TIMEOUT_S = 600
GEMINI_TASKS = {task: task.upper() for task in PROMPTS if task not in ("summarization", "code_retrieval", "none")} | {
    "code_retrieval": "CODE_RETRIEVAL_QUERY"
}
COHERE_TASKS = {
    "retrieval_document": "search_document", "retrieval_query": "search_query", "classification": "classification",
    "clustering": "clustering",
}  # fmt: skip
TEI_TASKS = {task: name for name, task in reversed(PROMPT_NAMES.items())}


class AskError(RuntimeError):
    """A server that cannot be asked: what was asked of it, what it said, and the remedy."""


class Refused(Exception):
    """A request that a server refused: HTTP's status, and its words."""

    def __init__(self, status: int, words: str) -> None:
        self.status, self.words = status, words
        super().__init__(f"HTTP {status}: {words[:300]}")


@dataclass(frozen=True, slots=True)
class Asked:
    """Texts of one request. `task` is the API's own name; `refuse` asks for an error in place of a cut."""

    texts: Sequence[str]
    model: str = MODEL
    task: str | None = None
    title: str | None = None
    dimensions: int | None = None
    refuse: bool | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """Vectors, float64 [texts, width], NaN where the answer has null; `said_cut` where it says that a text was cut."""

    vectors: np.ndarray
    said_cut: bool


@dataclass(frozen=True, slots=True)
class Api:
    """One API's shapes. `tasks` are the names of the tasks that a request can have;."""

    path: Callable[[Asked], str]
    body: Callable[[Asked], dict[str, Any]]
    vectors: Callable[[Any], Sequence[Any]]
    tasks: Mapping[str, str]
    models: str | None = None
    """Where the names of the models are listed; a name with a task behind it can be asked for."""
    title: bool = False
    can_refuse: bool = True
    own_prompts: bool = False
    """Whether each server has prompts by names of its own, so that it may refuse some of `tasks`."""


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _cog(asked: Asked) -> dict[str, Any]:
    truncate = None if asked.refuse is None else "none" if asked.refuse else "end"
    titles = [asked.title] * len(asked.texts) if asked.title else None
    fields = _given(task=asked.task, titles=titles, embedding_dim=asked.dimensions, truncate=truncate)
    return {"input": {"texts": list(asked.texts), "output_format": "array"} | fields}


def _gemini(asked: Asked) -> dict[str, Any]:
    fields = _given(taskType=asked.task, title=asked.title, outputDimensionality=asked.dimensions)
    fields |= _given(autoTruncate=None if asked.refuse is None else not asked.refuse)
    requests = [
        {"model": f"models/{asked.model}", "content": {"parts": [{"text": text}]}} | fields for text in asked.texts
    ]
    return {"requests": requests}


def _openai(asked: Asked) -> dict[str, Any]:
    truncate = None if asked.refuse is None or asked.refuse else True  # the API refuses by itself and has no field
    fields = _given(dimensions=asked.dimensions, truncate=truncate)
    return {"model": asked.model, "input": list(asked.texts), "encoding_format": "float"} | fields


def _in_order(answer: Any) -> list[Any]:
    """Return OpenAI's vectors; the order of the texts is in `index`, which some servers leave out."""
    data = answer["data"]
    return [each["embedding"] for each in sorted(data, key=lambda each: each.get("index", 0))]


def _cut(asked: Asked) -> bool | None:
    return None if asked.refuse is None else not asked.refuse


def _cohere(asked: Asked) -> dict[str, Any]:
    truncate = None if asked.refuse is None else "NONE" if asked.refuse else "END"
    fields = _given(output_dimension=asked.dimensions, truncate=truncate, input_type=asked.task or "search_document")
    return {"model": asked.model, "texts": list(asked.texts), "embedding_types": ["float"]} | fields


APIS = {
    "cog": Api(
        lambda asked: "/predictions", _cog, lambda answer: answer["output"]["embedding"],
        {task: task for task in PROMPTS}, title=True,
    ),
    "openai": Api(
        lambda asked: "/v1/embeddings", _openai, _in_order, {},
        models="/v1/models", can_refuse=False,
    ),
    "gemini": Api(
        lambda asked: f"/v1beta/models/{asked.model}:batchEmbedContents", _gemini,
        lambda answer: [each["values"] for each in answer["embeddings"]], GEMINI_TASKS, title=True,
    ),
    "tei": Api(
        lambda asked: "/embed",
        lambda asked: {"inputs": list(asked.texts)}
        | _given(prompt_name=asked.task, dimensions=asked.dimensions, truncate=_cut(asked)),
        lambda answer: answer, TEI_TASKS | {"none": "none"}, own_prompts=True,
    ),
    "ollama": Api(
        lambda asked: "/api/embed",
        lambda asked: {"model": asked.model, "input": list(asked.texts)}
        | _given(dimensions=asked.dimensions, truncate=_cut(asked)),
        lambda answer: answer["embeddings"], {}, models="/api/tags",
    ),
    "cohere": Api(
        lambda asked: "/v2/embed", _cohere, lambda answer: answer["embeddings"]["float"], COHERE_TASKS,
    ),
}  # fmt: skip


class Server:
    """One server, asked in the shape of one API."""

    def __init__(self, url: str, api: str, model: str | None = None, key: str | None = None) -> None:
        """Find the model's name. Raises AskError where the server does not answer, or has no or several models."""
        self.url, self.name, self.api = url.rstrip("/"), api, APIS[api]
        headers = {"Authorization": f"Bearer {key}", "x-goog-api-key": key} if key else {}
        no_connections = httpx.Limits(max_keepalive_connections=0)  # a server that ends would wait for them
        self._client = httpx.Client(timeout=TIMEOUT_S, headers=headers, limits=no_connections)
        listed = self._listed() if self.api.models else []
        self.model = model or (_choose(listed, self.url) if listed else MODEL)
        named = {task: f"{self.model}:{task}" for task in PROMPTS if f"{self.model}:{task}" in listed}
        self._named, self._fields = named, dict(self.api.tasks)

    @property
    def tasks(self) -> set[str]:
        """The tasks that a request can name."""
        return {*self._fields, *self._named}

    def forget_unknown_tasks(self) -> list[str]:
        """Leave out the tasks that the server refuses, where it has prompts of its own, and return them."""
        unknown = []
        for task in sorted(self._fields) if self.api.own_prompts else ():
            try:
                self.ask(["a"], task)
            except Refused as refusal:
                if refusal.status < 500:
                    unknown.append(task)
        self._fields = {task: name for task, name in self._fields.items() if task not in unknown}
        return unknown

    def ask(
        self,
        texts: Sequence[str],
        task: str | None = None,
        title: str | None = None,
        dimensions: int | None = None,
        refuse: bool | None = None,
    ) -> Answered:
        """Return the vectors of the texts. Raises Refused, and AskError for an answer of another shape."""
        model = self._named.get(task or "", self.model)
        asked = Asked(texts, model, self._fields.get(task or ""), title if self.api.title else None, dimensions, refuse)
        url = self.url + self.api.path(asked)
        try:
            answer = self._client.post(url, json=self.api.body(asked))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise AskError(f"{url}: {error}; is a server running there?") from error
        if answer.status_code != 200:
            raise Refused(answer.status_code, answer.text)
        try:
            content = answer.json()  # Python's reads NaN, too
            if self.name == "cog" and content.get("status") != "succeeded":
                raise Refused(422, str(content.get("error")))
            rows = [_numbers(row) for row in self.api.vectors(content)]
            if not rows or len({len(row) for row in rows}) != 1:
                raise ValueError(f"{len(rows)} vectors of several lengths")
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise AskError(f"{url}: the answer is not {self.name}'s ({error!r}); check --url and --api") from error
        if len(rows) != len(texts):
            raise AskError(f"{url}: {len(rows)} vectors for {len(texts)} texts; one for each was expected")
        return Answered(np.stack(rows), _said_cut(answer, content))

    def _listed(self) -> list[str]:
        url = f"{self.url}{self.api.models}"
        try:
            answer = self._client.get(url)
            if answer.status_code != 200:
                return []  # a server may do without a list
            content = answer.json()
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise AskError(f"{url}: {error}; is a server running there?") from error
        entries = content.get("data") or content.get("models") or []
        return [str(entry.get("id") or entry.get("name")) for entry in entries]


def _choose(listed: Sequence[str], url: str) -> str:
    """Return the model's name among those listed, the shortest one: those with a task behind them are longer."""
    ours = [name for name in listed if "embeddinggemma" in name.lower().replace("-", "").replace("_", "")]
    if ours:
        return min(ours, key=len)
    if len(listed) == 1:
        return listed[0]
    raise AskError(f"{url} has the models {', '.join(listed[:10])}; name the one to judge with --model")


def _numbers(row: Any) -> np.ndarray:
    """Return a vector as float64, NaN where it has null. Base64, which some servers send unasked, is float32."""
    if isinstance(row, str):
        return np.frombuffer(base64.b64decode(row), "<f4").astype(np.float64)
    return np.array([np.nan if number is None else number for number in row], dtype=np.float64)


def _said_cut(answer: httpx.Response, content: Any) -> bool:
    output = content.get("output") if isinstance(content, dict) else None
    return bool(answer.headers.get("x-truncated") or (isinstance(output, dict) and output.get("truncated")))
