"""The texts of one request, checked, with the names that errors and logs call them by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tasks import TITLED_TASK
from texts.checks import check_text, check_title

MAX_TEXTS = 2048


@dataclass(frozen=True, slots=True)
class Names:
    """What a client's API calls its texts and titles, as errors and logs name them; `{}` is a position in a list."""

    text: str = "text"
    texts: str = "texts[{}]"
    title: str = "title"
    titles: str = "titles[{}]"
    positions: Sequence[int] | None = None
    """The positions of the texts in the client's list, where these are not all of them."""

    def at(self, name: str, position: int) -> str:
        """Return the name of a list with the position of one of the texts."""
        return name.format(position if self.positions is None else self.positions[position])


DEFAULT_NAMES = Names()


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts that can be embedded, each with its title or None; `single` where a client gave one text and no list."""

    texts: list[str]
    titles: list[str | None]
    single: bool = False
    names: Names = DEFAULT_NAMES

    def name(self, position: int) -> str:
        """Return how a message names a text: `text` if it is the only one, otherwise `texts[3]`."""
        return self.names.text if self.single else self.names.at(self.names.texts, position)

    def title_name(self, position: int) -> str:
        """Return how a message names a title: `title` or `titles[3]`."""
        return self.names.title if self.single else self.names.at(self.names.titles, position)


def read_texts(
    text: str | None = None,
    texts: Sequence[str] | str | None = None,
    title: str | None = None,
    titles: Sequence[str] | None = None,
    task: str | None = None,
) -> Texts:
    """Return the texts of a request that gives either `text` or `texts`, with a title (or "") for each or for none.

    `texts` may be a JSON string of a list, as other embedding models on Replicate take them. Raises ValueError naming
    the field, its problem and the remedy: neither or both given, too many, blank, titles that do not belong to the
    texts or that the task has no place for.
    """
    if (text is None) == (texts is None):
        problem = "neither was given" if text is None else "both were given"
        raise ValueError(f"text, texts: {problem}; give one text in 'text', several in 'texts', or a 'file'")
    if title is not None and titles is not None:
        raise ValueError("title, titles: both were given; give 'title' with 'text', or 'titles' with 'texts'")
    if (title if text is None else titles) is not None:
        name = "title" if text is None else "titles"
        raise ValueError(f"{name}: give 'title' with 'text', or 'titles' with 'texts'")
    if text is not None:
        return check_texts([text], None if title is None else [title], task, single=True)
    return check_texts(_from_json(texts) if isinstance(texts, str) else texts or [], titles, task)


def check_texts(
    texts: Sequence[Any],
    titles: Sequence[Any] | None = None,
    task: str | None = None,
    single: bool = False,
    names: Names = DEFAULT_NAMES,
) -> Texts:
    """Return texts, each with its title. Raises ValueError as `read_texts` does, with a client's own names."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        name = names.texts.partition("[")[0]
        raise ValueError(f"{name}: {len(texts):,} texts were given; give 1 to {MAX_TEXTS:,}, the rest in further calls")
    request = Texts(list(texts), [None] * len(texts), single, names)
    for position, each in enumerate(texts):
        check_text(each, request.name(position))
    if titles is None:
        return request
    given = next((position for position, title in enumerate(titles) if title is not None), 0)
    name = request.title_name(given).removesuffix(f"[{given}]")
    if task not in (None, TITLED_TASK):
        raise ValueError(f"{name}: task '{task}' has no place for a title; leave it out or use task '{TITLED_TASK}'")
    if len(titles) != len(texts):
        raise ValueError(
            f"{name}: {len(titles):,} titles for {len(texts):,} texts; give one for each, '' where there is none"
        )
    for position, title in enumerate(titles):
        request.titles[position] = check_title(title, request.title_name(position))
    return request


def _from_json(texts: str) -> list[Any]:
    """Return the list in a JSON string. Raises ValueError where there is none."""
    remedy = "give a list of strings, a JSON string of such a list, or one text in 'text'"
    try:
        read = orjson.loads(texts)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"texts: {texts[:40]!r} is not JSON ({error}); {remedy}") from None
    if not isinstance(read, list):
        raise ValueError(f"texts: {texts[:40]!r} is JSON of no list; {remedy}")
    return read
