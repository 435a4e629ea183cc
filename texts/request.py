"""The texts of one request, with the names that errors and logs call them by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tasks import check_titled
from texts.checks import check_text, check_title
from texts.json_values import PART_VALUES, TooManyValues, spans_of_strings
from texts.limits import MAX_TEXTS

# As many as MAX_TEXTS strings, and eight times as many more for an error that counts them.
MOST_JSON_VALUES = 9 * MAX_TEXTS * PART_VALUES
# Handling a text costs about as much as reading this many of its characters.
TEXT_CHARS = 16


@dataclass(frozen=True, slots=True)
class Names:
    """What a client's API calls its texts and titles, as errors and logs name them; `{}` is a position in a list."""

    text: str = "text"
    texts: str = "texts[{}]"
    title: str = "title"
    titles: str = "titles[{}]"
    positions: Sequence[object] | None = None
    """What to put in place of the positions of the texts, where these are not all of the client's list."""

    def at(self, name: str, position: int) -> str:
        """Return the name of a list with the position of one of the texts."""
        return name.format(position if self.positions is None else self.positions[position])


DEFAULT_NAMES = Names()


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts and their titles as a client gave them; `checked` returns those that can be embedded."""

    texts: Sequence[Any] | str
    """A string is JSON of a list, as other embedding models on Replicate take it."""
    titles: Sequence[Any] | None = None
    """A title, or "" or None, for each text; None where no text has one."""
    single: bool = False
    """Whether the client gave one text and no list."""
    names: Names = DEFAULT_NAMES
    documents: Sequence[int] | None = None
    """How many texts in a row are the chunks of each document, to be read together; None where none belong together."""

    @property
    def characters(self) -> int:
        """About how many characters checking the texts is work on; 0 for too many texts, which is soon found."""
        if isinstance(self.texts, str):
            return len(self.texts)
        given = (*self.texts, *(self.titles or ())) if len(self.texts) <= MAX_TEXTS else ()
        return sum(len(each) for each in given if isinstance(each, str)) + TEXT_CHARS * len(given)

    def name(self, position: int) -> str:
        """Return how a message names a text: `text` if it is the only one, otherwise `texts[3]`."""
        return self.names.text if self.single else self.names.at(self.names.texts, position)

    def title_name(self, position: int) -> str:
        """Return how a message names a title: `title` or `titles[3]`."""
        return self.names.title if self.single else self.names.at(self.names.titles, position)

    def checked(self, task: str | None = None) -> tuple[list[str], list[str | None]]:
        """Return the texts, and the title of each or None.

        Raises ValueError naming the field, its problem and the remedy: texts that are too many, none or blank, titles
        that do not belong to the texts or that the task has no place for.
        """
        texts = _from_json(self.texts) if isinstance(self.texts, str) else self.texts
        check_count(texts, self.names.texts.partition("[")[0])
        checked = [check_text(text, self.name(position)) for position, text in enumerate(texts)]
        return checked, [None] * len(texts) if self.titles is None else self._checked_titles(len(texts), task)

    def _checked_titles(self, texts: int, task: str | None) -> list[str | None]:
        titles = self.titles or ()
        given = next((position for position, title in enumerate(titles) if title is not None), 0)
        name = self.title_name(given).removesuffix(f"[{given}]")
        check_titled(task, name)
        if self.documents is not None:
            raise ValueError(
                f"{name}: chunks of a document have no titles; leave them out, and begin the document with "
                "'title: ... | text: ' instead"
            )
        if len(titles) != texts:
            raise ValueError(
                f"{name}: {len(titles):,} titles for {texts:,} texts; give one for each, '' where there is none"
            )
        return [check_title(title, self.title_name(position)) for position, title in enumerate(titles)]


def read_texts(
    text: str | None = None,
    texts: Sequence[str] | str | None = None,
    title: str | None = None,
    titles: Sequence[str] | None = None,
) -> Texts:
    """Return the texts of a request that gives either `text`, which may have a `title`, or `texts`, with `titles`.

    Raises ValueError where neither or both are given, or where titles are given in the wrong field.
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
        return Texts([text], None if title is None else [title], single=True)
    return Texts([] if texts is None else texts, titles)


def check_count(texts: Sequence[object], name: str) -> None:
    """Raise ValueError, which begins with the field's name, for no texts and for more than MAX_TEXTS."""
    if not 1 <= len(texts) <= MAX_TEXTS:
        raise ValueError(f"{name}: {len(texts):,} texts were given; give 1 to {MAX_TEXTS:,}, the rest in further calls")


def _from_json(texts: str) -> list[Any]:
    """Return the list in a JSON string. Raises ValueError where there is none."""
    remedy = "give a list of strings, a JSON string of such a list, or one text in 'text'"
    try:
        for _ in spans_of_strings(texts.encode("utf-8", "surrogatepass"), MOST_JSON_VALUES, len(texts)):
            pass
    except TooManyValues as error:
        raise ValueError(f"texts: {error}; give 1 to {MAX_TEXTS:,} strings") from None
    try:
        read = orjson.loads(texts)
    except orjson.JSONDecodeError as error:
        raise ValueError(f"texts: the string is not JSON ({error}); {remedy}") from None
    if not isinstance(read, list):
        raise ValueError(f"texts: the string is JSON, but not a list; {remedy}")
    return read
