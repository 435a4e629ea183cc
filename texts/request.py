"""The texts of one request, checked, with the names that errors and logs call them by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tasks import TITLED_TASK
from texts.checks import check_text, check_title

MAX_TEXTS = 2048


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts that can be embedded, each with its title or None; `single` where a client gave one text and no list."""

    texts: list[str]
    titles: list[str | None]
    single: bool = False

    def name(self, position: int) -> str:
        """Return how a message names a text: `text` if it is the only one, otherwise `texts[3]`."""
        return "text" if self.single else f"texts[{position}]"

    def title_name(self, position: int) -> str:
        """Return how a message names a title: `title` or `titles[3]`."""
        return "title" if self.single else f"titles[{position}]"


def read_texts(
    text: str | None = None,
    texts: Sequence[str] | str | None = None,
    title: str | None = None,
    titles: Sequence[str] | None = None,
    task: str = TITLED_TASK,
) -> Texts:
    """Return the texts of a request that gives either `text` or `texts`, with a title (or "") for each or for none.

    `texts` may be a JSON string of a list, as other embedding models on Replicate take them. Raises ValueError naming
    the field, its problem and the remedy: neither or both given, too many, blank, titles that do not belong to the
    texts or that the task has no place for.
    """
    if (text is None) == (texts is None):
        problem = "neither was given" if text is None else "both were given"
        raise ValueError(f"text, texts: {problem}; give one text in 'text', several in 'texts', or a 'file'")
    all_texts = [text] if text is not None else _from_json(texts) if isinstance(texts, str) else list(texts or [])
    if not 1 <= len(all_texts) <= MAX_TEXTS:
        raise ValueError(
            f"texts: {len(all_texts):,} texts were given; give 1 to {MAX_TEXTS:,}, the rest in further calls"
        )
    request = Texts(all_texts, [None] * len(all_texts), single=text is not None)
    for position, each in enumerate(all_texts):
        check_text(each, request.name(position))
    all_titles = _read_titles(request, title, titles, task)
    for position, each_title in enumerate(all_titles):
        request.titles[position] = check_title(each_title, request.title_name(position))
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


def _read_titles(request: Texts, title: str | None, titles: Sequence[str] | None, task: str) -> Sequence[str]:
    """Return a title for each text, or none at all. Raises ValueError where they do not belong to the texts."""
    if title is None and titles is None:
        return []
    name = "title" if titles is None else "titles"
    if title is not None and titles is not None:
        raise ValueError("title, titles: both were given; give 'title' with 'text', or 'titles' with 'texts'")
    if task != TITLED_TASK:
        raise ValueError(f"{name}: task '{task}' has no place for a title; leave it out or use task '{TITLED_TASK}'")
    if (title is not None) != request.single:
        raise ValueError(f"{name}: give 'title' with 'text', or 'titles' with 'texts'")
    all_titles = [title] if title is not None else titles or []
    if len(all_titles) != (count := len(request.texts)):
        raise ValueError(
            f"titles: {len(all_titles):,} titles for {count:,} texts; give one for each, '' where there is none"
        )
    return all_titles
