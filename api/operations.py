"""What an API consists of: operations, one for each path, and what they have in common."""

import base64
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import orjson
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.types import Scope

from api.metrics import Metrics
from api.refusal import STATUSES, Refusal
from service import Embedded, Service
from texts.options import Options
from texts.request import Names, Texts

# Checking options takes as long as finding a vector in the cache, and most requests have the same few.
options_of = lru_cache(1024)(Options)


@dataclass(frozen=True)
class Call:
    """One call of an operation: the service, its metrics, the decoded body, and ASGI's scope."""

    service: Service
    metrics: Metrics
    body: Any
    scope: Scope

    @property
    def path(self) -> dict[str, str]:
        """The variables of the path."""
        return dict(self.scope["path_params"])

    @property
    def query(self) -> QueryParams:
        """The variables after the question mark."""
        return QueryParams(self.scope["query_string"])


@dataclass(frozen=True)
class Answer:
    """The answer of an operation on texts, still to be written, and what its headers say."""

    write: Callable[[], Any]
    """Makes the body, which may take long; it runs where work of this `size` belongs."""
    embedded: Sequence[Embedded] = ()
    """The texts, in one part or in several."""
    positions: Sequence[int] | None = None
    """Where each of these texts stands in the request; None for the same order."""
    characters: int = 0
    """Characters of texts that the body repeats."""
    extra_headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Numbers of the vectors, and characters, in the body."""
        return self.characters + sum(each.vectors.size for each in self.embedded)

    def headers(self) -> dict[str, str]:
        """Return the headers: the API's own, and which texts were cut and which began with a prompt."""
        facts = {"x-truncated": self._positions("truncated"), "x-prompted": self._positions("prompted")}
        return {**self.extra_headers, **{name: in_ranges(found) for name, found in facts.items() if found}}

    def _positions(self, fact: str) -> list[int]:
        of_parts = [getattr(each, fact) for each in self.embedded]
        if not any(of_parts):
            return []
        starts = accumulate((len(each.owners) for each in self.embedded), initial=0)
        found = [start + i for start, part in zip(starts, of_parts, strict=False) for i in part]
        return found if self.positions is None else sorted(self.positions[i] for i in found)


@dataclass(frozen=True)
class Api:
    """An API: its name, how its clients send their key, and what its errors look like."""

    name: str
    error: Callable[[Refusal, int], Any]
    """The body of an error, from the refusal and HTTP's status."""
    statuses: dict[str, int] = field(default_factory=dict)
    """HTTP statuses that differ from STATUSES."""
    key_header: str = "authorization"

    def status(self, refusal: Refusal) -> int:
        """Return the HTTP status for a refusal."""
        return self.statuses.get(refusal.kind, STATUSES[refusal.kind])

    def key(self, request: Request) -> str:
        """Return the key that a client sent, "" if it sent none."""
        sent = request.headers.get(self.key_header) or request.headers.get("authorization", "")
        scheme, _, key = sent.strip().partition(" ")
        match scheme.lower():
            case "bearer":
                sent = key.strip()
            case "basic":
                sent = _password(key)
            case _:
                sent = sent.strip()
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
    """Whether it is answered while the model is loaded."""
    in_url: Any = None
    """The type of the fields that it takes in the URL as well as in the body."""


def _password(coded: str) -> str:
    """Return the password of Basic authentication, by which Go's clients send the one in a URL; "" if there is none."""
    try:
        return base64.b64decode(coded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def texts_of(given: "str | list[str]", names: Names, titles: Sequence[str | None] | None = None) -> Texts:
    """Return the texts of a field that takes one text or a list."""
    single = isinstance(given, str)
    return Texts([given] if single else given, titles, single, names)


def chunks_of(embedded: Embedded) -> "list[list[int]] | msgspec.UnsetType":
    """Return [text, start, end] of each vector, where texts were cut into chunks."""
    return msgspec.UNSET if embedded.chunks is None else embedded.chunks


def numbers(vectors: np.ndarray) -> list[Any]:
    """Return each vector of [n, width] or [width] as a JSON list; a float32 has the digits that tell it from others."""
    return [msgspec.Raw(orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)) for row in _rows(vectors)]


def base64s(vectors: np.ndarray) -> list[Any]:
    """Return each vector of [n, width] or [width] as its bytes, little-endian, which msgspec writes as base64."""
    return [row.tobytes() for row in _rows(vectors)]


def _rows(vectors: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(vectors).reshape(-1, vectors.shape[-1])


def in_ranges(positions: Sequence[int]) -> str:
    """Return ascending positions such as 3,17,20-29: at most about 5,000 characters for 2,048 positions."""
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and position == ranges[-1][1] + 1:
            ranges[-1][1] = position
        else:
            ranges.append([position, position])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
