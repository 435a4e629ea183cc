"""Reading fields of requests: each value must be one of its choices, and no two fields may contradict each other."""

from collections.abc import Container
from typing import Any, TypeVar, cast

from starlette.datastructures import QueryParams

from engine.tokenizer import Truncate
from texts.chunking import Chunking
from texts.options import EMBEDDING_DIMS, check_choice, chunking_of

Choice = TypeVar("Choice")
Meaning = TypeVar("Meaning")
Whole = int | float
"""A whole number. JSON does not tell integers from floats, and some clients write 256 as 256.0."""
SIDES: dict[str, Truncate] = {"left": "start", "right": "end"}
"""The end of a text to cut, by the tokenizers' names."""
# Every prompt is shorter, so a limit this low leaves room for some of the text.
MIN_TOKENS = 32
# What clients put into any URL: the key, and a format or version where only one exists.
URL_EXTRAS = frozenset({"key", "alt", "$alt", "prettyPrint", "$prettyPrint", "api-version"})


def one_of(field: str, value: Choice | None, choices: Container[Choice], default: Choice | None = None) -> Any:
    """Return the value of an optional field. Raises ValueError, naming field and choices, for any other value."""
    if value is None:
        return default
    check_choice(field, value, choices)
    return value


def agreed(*asked: tuple[str, object, Meaning | None], hint: str = "") -> Meaning | None:
    """Return the meaning that all fields share, each given as name, value and meaning (None where it was not sent).

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
    """Return a whole number as an int. Raises ValueError for a fraction."""
    if value is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"{field}: {value} is not a whole number; give one without a fraction")
    return int(value)


def dimensions_of(*asked: tuple[str, Whole | None]) -> int:
    """Return how many dimensions a request asks for, in any of several fields."""
    read = [(field, value, one_of(field, whole(field, value), EMBEDDING_DIMS)) for field, value in asked]
    return agreed(*read) or EMBEDDING_DIMS[0]


def token_limit(field: str, asked: Whole | None) -> int | None:
    """Return the most tokens that a text may have, prompt included. Raises ValueError for too few."""
    limit = whole(field, asked)
    if limit is not None and limit < MIN_TOKENS:
        raise ValueError(f"{field}: {limit} leaves a text too little beside its prompt; give at least {MIN_TOKENS}")
    return limit


def chunking_asked(
    chunk: Whole | None, overlap: Whole | None, late: bool | None, limit: tuple[str, Whole | None] = ("", None)
) -> Chunking | None:
    """Return how texts are cut into chunks, None where they are not.

    Raises ValueError for fields that do not fit together, also where the field in `limit` cuts texts to some tokens.
    """
    field, tokens = limit
    if chunk is not None and tokens is not None:
        raise ValueError(f"{field}: chunks are not cut; leave it out, or leave 'chunk' out")
    return chunking_of(whole("chunk", chunk), whole("overlap", overlap) or 0, bool(late))


def cut_end(truncate: bool | str) -> Truncate:
    """Return which end of a text is cut. In most APIs `truncate` is a switch, and true means the end."""
    return cast(Truncate, truncate.lower()) if isinstance(truncate, str) else "end" if truncate else "none"


def check_url(query: QueryParams) -> None:
    """Raise ValueError for a field in the URL of an operation whose fields belong in the body."""
    for field in query:
        if field not in URL_EXTRAS:
            raise ValueError(f"{field[:80]!r}: this API has no fields in the URL; send it in the body, or leave it out")
