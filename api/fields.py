"""What requests ask for in their fields: each value is one of its choices, and no two fields contradict each other."""

from collections.abc import Container
from typing import Any, TypeVar, cast

from starlette.datastructures import QueryParams

from engine.tokenizer import Truncate
from texts.options import EMBEDDING_DIMS, check_choice

Choice = TypeVar("Choice")
Meaning = TypeVar("Meaning")
Whole = int | float
"""A whole number. JSON has one kind of numbers, and some clients write 256 as 256.0."""
SIDES: dict[str, Truncate] = {"left": "start", "right": "end"}
"""The ends of a text by the names that tokenizers have for them."""
# No prompt is longer, so some of a text is left of so many tokens.
MIN_TOKENS = 32
# What clients put into any URL: the key, and how answers look or which version they know, where there is but one.
URL_EXTRAS = frozenset({"key", "alt", "$alt", "prettyPrint", "$prettyPrint", "api-version"})


def one_of(field: str, value: Choice | None, choices: Container[Choice], default: Choice | None = None) -> Any:
    """Return the value of an optional field. Raises ValueError, naming field and choices, if it is none of these."""
    if value is None:
        return default
    check_choice(field, value, choices)
    return value


def agreed(*asked: tuple[str, object, Meaning | None], hint: str = "") -> Meaning | None:
    """Return what all fields mean that were sent, each given with its value and what that means; None for none.

    Raises ValueError, naming two of them, where they mean different things.
    """
    said = [each for each in asked if each[2] is not None]
    if not said:
        return None
    first, its_value, its_meaning = said[0]
    for field, value, meaning in said[1:]:
        if meaning != its_meaning:
            problem = f"{value!r:.80} contradicts {first}, which is {its_value!r:.80}"
            raise ValueError(f"{field}: {problem}; give one of the two{hint}")
    return its_meaning


def whole(field: str, value: Whole | None) -> int | None:
    """Return a whole number. Raises ValueError for another."""
    if value is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{field}: {value} is not a whole number; give one without a fraction")
    return int(value)


def dimensions_of(*asked: tuple[str, Whole | None]) -> int:
    """Return how many dimensions are asked for by fields that may have any one name."""
    read = [(field, value, one_of(field, whole(field, value), EMBEDDING_DIMS)) for field, value in asked]
    return agreed(*read) or EMBEDDING_DIMS[0]


def token_limit(field: str, asked: Whole | None) -> int | None:
    """Return the most tokens that a text is to have, prompt included. Raises ValueError for too few."""
    limit = whole(field, asked)
    if limit is not None and limit < MIN_TOKENS:
        raise ValueError(f"{field}: {limit} leaves a text too little beside its prompt; give at least {MIN_TOKENS}")
    return limit


def cut_end(truncate: bool | str) -> Truncate:
    """Return which end of a text is cut, for `truncate` that is a switch in most APIs: true means the end."""
    return cast(Truncate, truncate.lower()) if isinstance(truncate, str) else "end" if truncate else "none"


def check_url(query: QueryParams) -> None:
    """Raise ValueError for a field in the URL of an operation that has its fields in the body."""
    for field in query:
        if field not in URL_EXTRAS:
            raise ValueError(f"{field[:80]!r}: this API has no fields in the URL; send it in the body, or leave it out")
