"""What an API consists of: operations, one for each path, and what they have in common."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import orjson
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import Scope

import encoding
from api.metrics import Metrics
from api.refusal import STATUSES, Refusal
from service import CHARACTERS_ON_LOOP, NUMBERS_ON_LOOP, Embedded, Service, off_loop
from texts.options import Options
from texts.request import DEFAULT_NAMES, Names, check_texts

# Checking the same few options takes as long as finding a vector in the cache.
options_of = lru_cache(1024)(Options)


@dataclass
class Call:
    """One call of an operation: the service, the decoded body, ASGI's scope, and what the headers will say."""

    service: Service
    metrics: Metrics
    body: Any
    scope: Scope
    truncated: list[int] = field(default_factory=list)
    prompted: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> dict[str, str]:
        """The variables of the path."""
        return dict(self.scope["path_params"])

    @property
    def query(self) -> QueryParams:
        """The variables after the question mark."""
        return QueryParams(self.scope["query_string"])

    async def embed(
        self,
        texts: Sequence[str],
        options: Options,
        names: Names = DEFAULT_NAMES,
        single: bool = False,
        titles: Sequence[str | None] | None = None,
    ) -> Embedded:
        """Check the texts as `check_texts` does, embed them as `Service.embed` does, and note what the headers say."""
        is_large = sum(map(len, texts)) > CHARACTERS_ON_LOOP
        checked = await off_loop(is_large, check_texts, texts, titles, options.task, single, names)
        embedded = await self.service.embed(checked, options)
        self.truncated, self.prompted = embedded.truncated, embedded.prompted
        return embedded


@dataclass(frozen=True)
class Api:
    """One API: its name, how its clients send their key, and what its errors look like."""

    name: str
    error: Callable[[Refusal, int], Any]
    """The body of an error, from the refusal and HTTP's status."""
    statuses: dict[str, int] = field(default_factory=dict)
    """HTTP's statuses that differ from STATUSES."""
    key_header: str = "authorization"

    def status(self, refusal: Refusal) -> int:
        """Return HTTP's status for a refusal."""
        return self.statuses.get(refusal.kind, STATUSES[refusal.kind])

    def key(self, request: Request) -> str:
        """Return the key that a client sent, "" if it sent none."""
        sent = request.headers.get(self.key_header) or request.headers.get("authorization", "")
        scheme, _, key = sent.strip().partition(" ")
        sent = key.strip() if scheme.lower() == "bearer" else sent.strip()
        return sent or request.query_params.get("key", "")


@dataclass(frozen=True)
class Operation:
    """A method and path of an API, with the types of its body and its answer."""

    api: Api
    method: str
    path: str
    summary: str
    handle: Callable[[Call], Awaitable[Any]]
    asks: Any = None
    """The body's type; None for an operation without a body."""
    answers: Any = None
    is_open: bool = False
    """Whether it needs no key."""
    while_loading: bool = False
    """Whether it is answered before the model is there."""
    in_url: Any = None
    """The type of the fields that it takes in the URL as well as in the body; None for none."""


async def numbers(vectors: np.ndarray) -> list[msgspec.Raw]:
    """Return each vector of [n, width] or [width] as a JSON list; a float32 has the digits that tell it from others."""
    return await off_loop(vectors.size > NUMBERS_ON_LOOP, _numbers, vectors)


def _numbers(vectors: np.ndarray) -> list[msgspec.Raw]:
    rows = np.ascontiguousarray(np.atleast_2d(vectors))
    return [msgspec.Raw(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)) for row in rows]


async def base64s(vectors: np.ndarray) -> list[Any]:
    """Return each vector of [n, width] or [width] as base64 of its bytes, little-endian."""
    return await off_loop(vectors.size > NUMBERS_ON_LOOP, _base64s, vectors)


def _base64s(vectors: np.ndarray) -> list[Any]:
    return [encoding.encode(row, "base64") for row in np.atleast_2d(vectors)]


def in_ranges(positions: Sequence[int]) -> str:
    """Return ascending positions such as 3,17,20-29: at most some 5,000 characters for the 2,048 of a request."""
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
