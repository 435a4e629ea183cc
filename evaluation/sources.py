"""What embeds: an engine in this process, or a running container by its URL."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
import numpy as np

import encoding
import engine
import selfcheck
import weights
from tasks import prompt_for
from texts.chunking import Chunking
from texts.options import Options
from texts.prepare import prepare

# Texts in one request: a container puts them into batches of its own. Documents that it cuts make many vectors each.
TEXTS_IN_REQUEST, DOCUMENTS_IN_REQUEST = 1_024, 8
REQUEST_TIMEOUT_S = 3_600


class EvaluationError(RuntimeError):
    """An evaluation that cannot go on: what is wrong, with what, and the remedy."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors at full size, float32 [n, 768] of unit length, and the position of each one's text, ascending."""

    vectors: np.ndarray
    owners: list[int]
    tokens: int
    """Tokens that the vectors are means over."""
    seconds: float
    """How long computing them took, tokenizing included."""


class Source(Protocol):
    """Texts to vectors. `name` is the checkpoint's, `model` says which weights compute, in which number format."""

    name: str
    model: str

    def embed(
        self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None
    ) -> Embedded:
        """Return the vectors of all texts, one for each text or, with chunking, one for each chunk."""


class EngineSource:
    """The engine as it is served, on this machine."""

    def __init__(self, name: str | None, dtype: str | None = None) -> None:
        """Load the checkpoint that `name` names, as WEIGHTS does, in a number format, and prove it right.

        Raises what `weights.resolve`, `engine.load` and `selfcheck.check` raise.
        """
        checkpoint = weights.resolve(name)
        self._engine = engine.load(checkpoint.directory, dtype=dtype, measured=weights.measurements())
        selfcheck.check(self._engine, checkpoint.directory, checkpoint.canaries)
        self.name = checkpoint.name.partition("@")[0]
        self.model = checkpoint.computed_in(self._engine.number_format)

    def embed(
        self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None
    ) -> Embedded:
        """See Source. A blank text is embedded as sentence-transformers does, as its prompt alone."""
        started = time.perf_counter()
        options = Options(task=task, chunking=chunking)
        prepared = prepare(self._engine.tokenizer, texts, titles, options)
        vectors = options.finish(self._engine.embed(prepared.token_ids, prepared.ranges))
        tokens = sum(map(len, prepared.token_ids))
        return Embedded(vectors, prepared.owners, tokens, time.perf_counter() - started)


class ServerSource:
    """A running container, by the URL of Cog's API."""

    def __init__(self, url: str) -> None:
        """Ask the server which weights it has. Raises EvaluationError where it does not answer as ours do."""
        self.url = url.rstrip("/")
        self._client = httpx.Client(timeout=REQUEST_TIMEOUT_S)
        self.model = str(self._predict({"text": "Which weights are these?"})["model"])
        self.name = self.model.partition("@")[0]

    def embed(
        self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None
    ) -> Embedded:
        """See Source."""
        started = time.perf_counter()
        each = TEXTS_IN_REQUEST if chunking is None else DOCUMENTS_IN_REQUEST
        vectors, owners, tokens = [], list[int](), 0
        for start in range(0, len(texts), each):
            part = slice(start, start + each)
            output = self._predict(self._inputs(texts[part], titles[part], task, chunking))
            vectors.append(encoding.decode(output))
            given = [chunk[0] for chunk in output["chunks"]] if chunking else range(len(vectors[-1]))
            owners += [start + owner for owner in given]
            tokens += sum(output["token_counts"])
        return Embedded(np.concatenate(vectors), owners, tokens, time.perf_counter() - started)

    def _inputs(
        self, texts: Sequence[str], titles: Sequence[str | None], task: str, chunking: Chunking | None
    ) -> dict[str, Any]:
        if any(not text.strip() for text in texts):  # which a server refuses as a text, but not as its prompt
            prompted = [prompt_for(task, title) + text for text, title in zip(texts, titles, strict=True)]
            inputs: dict[str, Any] = {"texts": prompted, "task": "none"}
        else:
            inputs = {"texts": list(texts), "task": task}
            if any(titles):
                inputs["titles"] = [title or "" for title in titles]
        if chunking:
            inputs |= {"chunk": chunking.chunk, "overlap": chunking.overlap, "late_chunking": chunking.late}
        return inputs

    def _predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/predictions"
        try:
            answer = self._client.post(url, json={"input": inputs})
            content = answer.raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            raise EvaluationError(f"{url}: {error}; is it the URL of a container's Cog API, and ready?") from error
        if content.get("status") != "succeeded":
            raise EvaluationError(f"{url}: the prediction failed: {content.get('error')}")
        return dict(content["output"])
