"""What makes a text or a title unfit to embed; predictions and corpora refuse the same, in the same words."""


def check_text(text: object, name: str) -> str:
    """Return the text. Raises ValueError, which begins with `name`, unless it is a string of Unicode with content."""
    if text is None:
        raise ValueError(f"{name}: it is null; give a text, or leave it out")
    if not isinstance(text, str):
        raise ValueError(f"{name}: it is {_kind(text)}; give a string")
    check_unicode(text, name)
    if not text or text.isspace():
        raise ValueError(f"{name}: the text is empty or blank, which has no meaning to embed; leave it out")
    return text


def check_title(title: object, name: str) -> str | None:
    """Return the title, None for a null or blank one. Raises ValueError unless it is a string of Unicode."""
    if title is None:
        return None
    if not isinstance(title, str):
        raise ValueError(f"{name}: it is {_kind(title)}; give a string, or null where there is no title")
    check_unicode(title, name)
    return title if title.strip() else None


def check_unicode(text: str, name: str) -> None:
    """Raise ValueError for a lone surrogate, half of a UTF-16 pair, which no encoding can spell."""
    if text.isascii():  # takes no time, however long the text is
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: character {error.start} is a lone surrogate (U+{ord(text[error.start]):04X}), not a character; "
            "write whole UTF-16 pairs or UTF-8"
        ) from None


def _kind(value: object) -> str:
    kinds = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object", bytes: "bytes"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
