"""Secrets kept out of logs and errors: users, passwords and queries of URLs, tokens, and the words of exceptions."""

import logging
import re
import traceback
from typing import Any

# A URL's login, in whose password a slash may stand unescaped, and what follows ? or #.
URL = re.compile(
    r"""([a-z][a-z0-9+.-]*://)
        (?:[^\s'"<>/]*@|[^\s'"<>/@:]+:(?!\d+(?:[/?\#\s]|$))[^\s'"<>@]*@)?
        ([^\s'"<>?\#]*)([?\#][^\s'"<>]*)?""",
    re.IGNORECASE | re.ASCII | re.VERBOSE,
)
# A login without a scheme, and Hugging Face's tokens.
LOGIN = re.compile(r"(?<![^\s='\"(])[^\s:/@='\"(]+:[^\s/@'\"]+@")
TOKEN = re.compile(r"\bhf_\w{8,}", re.ASCII)
MASK = "***"


def masked(text: object) -> str:
    """Return a text without the secrets in its URLs and tokens."""
    shown = URL.sub(lambda url: f"{url[1]}{url[2]}{'?' + MASK if url[3] else ''}", str(text))
    return TOKEN.sub(f"hf_{MASK}", LOGIN.sub(f"{MASK}@", shown))


def masked_address(address: str) -> str:
    """Return a masked address; all of it may be a single URL, with blanks and quotes in its password."""
    scheme, separator, rest = address.partition("://")
    return masked(f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else address)


def where(error: BaseException | None) -> str:
    """Return the traceback of an error and of its causes, without their words, which may quote a text."""
    parts: list[str] = []
    while error is not None and len(parts) < 10:
        parts.insert(0, "".join([*traceback.format_tb(error.__traceback__), type(error).__name__]))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\n".join(parts)


class PrivateRecord(logging.LogRecord):
    """A masked line of the log; of an exception it has the traceback but not the words."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        try:
            self.msg, self.args = masked(self.getMessage()), ()
        except (TypeError, ValueError, KeyError):  # a library's mistake, which the handler reports
            return
        if self.exc_info:
            self.exc_text = where(self.exc_info[1])


def keep_secrets() -> None:
    """Have every logger in this process, ours or a library's, write such lines."""
    logging.setLogRecordFactory(PrivateRecord)
