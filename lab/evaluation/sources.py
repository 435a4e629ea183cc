"""Where vectors come from: an engine in this process, or a running container by its URL."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

import encoding
import engine
import selfcheck
import weights
from lab.clients import AskError, Client
from settings import access
from tasks import prompt_for
from texts.chunking import Chunking
from texts.options import Options
from texts.prepare import prepare

# Texts in a request; the container batches them itself. Documents that it cuts make many vectors each.
TEXTS_IN_REQUEST, DOCUMENTS_IN_REQUEST = 1_024, 8
REQUEST_TIMEOUT_S = 3_600


class EvaluationError(RuntimeError):
    """An evaluation that cannot go on: what is wrong, where, and the remedy."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Vectors at full size, float32 [n, 768] of unit length, and the position of each vector's text, ascending."""

    vectors: np.ndarray
    owners: list[int]
    tokens: int
    """Tokens that the vectors are means over."""
    seconds: float
    """How long computing them took, tokenizing included."""


class Source(Protocol):
    """Turns texts into vectors. `name` is the checkpoint's; `model` names the weights and the number format."""

    name: str
    model: str
    generation: int
    """Whether it is EmbeddingGemma 1 or 2."""

    def embed(self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None) -> Answer:
        """Return the vectors of all texts, one for each text or, with chunking, one for each chunk."""


class EngineSource:
    """The engine as it is served, on this machine."""

    def __init__(self, name: str | None, dtype: str | None = None) -> None:
        """Load and check the checkpoint that `name` names, as WEIGHTS does, in a number format.

        Raises the errors of `weights.resolve`, `engine.load` and `selfcheck.check`.
        """
        checkpoint = weights.resolve(name)
        self._engine = engine.load(checkpoint.directory, dtype=dtype, measured=weights.measurements())
        selfcheck.check(self._engine, checkpoint.directory, checkpoint.canaries)
        self.name = checkpoint.name.partition("@")[0]
        self.model = checkpoint.computed_in(self._engine.number_format)
        self.generation = self._engine.tokenizer.generation

    def embed(self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None) -> Answer:
        """See Source. Of a blank text the prompt is embedded, as sentence-transformers does."""
        started = time.perf_counter()
        options = Options(task=task, chunking=chunking)
        prepared = prepare(self._engine.tokenizer, texts, titles, options)
        vectors = options.finish(self._engine.embed(prepared.token_ids, prepared.ranges))
        tokens = sum(map(len, prepared.token_ids))
        return Answer(vectors, prepared.owners, tokens, time.perf_counter() - started)


class ServerSource:
    """A running container, by the URL of Cog's API."""

    def __init__(self, url: str) -> None:
        """Ask the server which weights it has. Raises EvaluationError unless it answers as ours does."""
        self._client = Client(url, "cog", key=access.key(), timeout_s=REQUEST_TIMEOUT_S)
        answer = self._predict({"text": "Which weights are these? " * 500})  # which the first generation would cut
        self.model, self.generation = str(answer["model"]), 1 if answer["truncated"] else 2
        self.name = self.model.partition("@")[0]

    def embed(self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None) -> Answer:
        """See Source."""
        started = time.perf_counter()
        each = TEXTS_IN_REQUEST if chunking is None else DOCUMENTS_IN_REQUEST
        vectors, owners, tokens = [], list[int](), 0
        for start in range(0, len(texts), each):
            part = slice(start, start + each)
            output = self._predict(_inputs(texts[part], titles[part], task, chunking))
            vectors.append(encoding.decode(output))
            of_part = [chunk[0] for chunk in output["chunks"]] if chunking else range(len(vectors[-1]))
            owners += [start + owner for owner in of_part]
            tokens += sum(output["token_counts"])
        return Answer(np.concatenate(vectors), owners, tokens, time.perf_counter() - started)

    def _predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        try:
            answer, _ = self._client.send(inputs)
        except AskError as error:
            raise EvaluationError(f"{error} (--url takes the URL of a container's Cog API)") from error
        return dict(answer["output"])


def _inputs(texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None) -> dict[str, Any]:
    if any(not text.strip() for text in texts):  # a server refuses a blank text, but not a blank text's prompt
        prompted = [prompt_for(task, title) + text for text, title in zip(texts, titles, strict=True)]
        inputs: dict[str, Any] = {"texts": prompted, "task": "none"}
    else:
        inputs = {"texts": list(texts), "task": task}
        if any(titles):
            inputs["titles"] = [title or "" for title in titles]
    if chunking:
        inputs |= {"chunk": chunking.chunk, "overlap": chunking.overlap, "late_chunking": chunking.late}
    return inputs
