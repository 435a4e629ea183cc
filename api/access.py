"""Who may call: the key that clients must send, and the origins whose pages a browser lets in."""

import re

import settings
from settings import SettingError

# What a browser sends as Origin: scheme://host, and a port that is not the scheme's own.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.ASCII)
OWN_PORTS = {"http": ":80", "https": ":443"}


def key() -> str | None:
    """Return API_KEY, None where it is not set. Raises SettingError for a key that not every client can send."""
    value = settings.text("API_KEY")
    if value is not None and not (value.isascii() and value.isprintable()):
        raise SettingError("API_KEY has a character that is not ASCII, which a header cannot carry; choose another key")
    return value


def origins() -> list[str]:
    """Return the origins in API_ORIGINS as browsers send them, "*" for all. Raises SettingError naming a wrong one."""
    found = []
    for part in (settings.text("API_ORIGINS") or "").split(","):
        origin = part.strip().removesuffix("/").lower()
        if origin and origin not in ("*", "null") and not ORIGIN.fullmatch(origin):
            raise SettingError(
                f"API_ORIGINS: {part.strip()[:200]!r} is not the origin of a page; give it as https://example.org or "
                "http://localhost:3000, without a path, with commas between several, or * for all pages"
            )
        if origin:
            found.append(origin.removesuffix(OWN_PORTS.get(origin.partition(":")[0], "/")))
    return found
