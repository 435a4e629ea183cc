"""Which texts and titles are refused. Predictions and corpora refuse the same, in the same words."""

# Looking at this many characters in one call holds the interpreter's lock for a millisecond or two.
PART_CHARS = 1 << 18


def check_text(text: object, name: str) -> str:
    """Return the text. Raises ValueError, which begins with `name`, unless it is a Unicode string that is not blank."""
    if text is None:
        raise ValueError(f"{name}: it is null; give a text, or leave it out")
    if not isinstance(text, str):
        raise ValueError(f"{name}: it is {_kind(text)}; give a string")
    check_unicode(text, name)
    if is_blank(text):
        raise ValueError(f"{name}: the text is empty or blank, which has no meaning to embed; leave it out")
    return text


def check_title(title: object, name: str) -> str | None:
    """Return the title, or None for a null or blank title. Raises ValueError unless it is a Unicode string."""
    if title is None:
        return None
    if not isinstance(title, str):
        raise ValueError(f"{name}: it is {_kind(title)}; give a string, or null where there is no title")
    check_unicode(title, name)
    return None if is_blank(title) else title


def check_unicode(text: str, name: str) -> None:
    """Raise ValueError for a lone surrogate: half of a UTF-16 pair, which cannot be encoded."""
    if text.isascii():  # takes no time, however long the text is
        return
    for first in range(0, len(text), PART_CHARS):
        try:
            text[first : first + PART_CHARS].encode("utf-8")
        except UnicodeEncodeError as error:
            position = first + error.start
            raise ValueError(
                f"{name}: character {position} is a lone surrogate (U+{ord(text[position]):04X}), not a character; "
                "write whole UTF-16 pairs or UTF-8"
            ) from None


def is_blank(text: str) -> bool:
    """Return whether a text, of any length, is only white space."""
    if text and not text[0].isspace():  # most texts
        return False
    return all(text[first : first + PART_CHARS].isspace() for first in range(0, len(text), PART_CHARS))


def _kind(value: object) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
