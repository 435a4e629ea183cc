"""Who may call: the key that clients must send, and the sites whose pages may call from a browser."""

import ipaddress
import re
from collections.abc import Collection

import settings
from settings import SettingError

# The header Origin: scheme://host, and the port unless it is the scheme's own.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.ASCII)
OWN_PORTS = {"http": ":80", "https": ":443"}


def key() -> str | None:
    """Return API_KEY, None if it is unset. Raises SettingError for a key that some clients cannot send."""
    value = settings.text("API_KEY")
    if value is not None and not (value.isascii() and value.isprintable()):
        raise SettingError("API_KEY has a character that is not ASCII, which a header cannot carry; choose another key")
    return value


def key_header() -> dict[str, str]:
    """Return the header with which a client on this machine sends API_KEY, none if it is unset."""
    value = key()
    return {} if value is None else {"Authorization": f"Bearer {value}"}


def tells_cache_hits() -> bool:
    """Return TELL_CACHE_HITS: whether answers and metrics tell what came from the cache, so was asked for before.

    The default is yes, and no if API_KEY is set, as clients may then not know each other. Raises SettingError.
    """
    return settings.choice("TELL_CACHE_HITS", ("yes", "no"), "yes" if key() is None else "no") == "yes"


def origins() -> list[str]:
    """Return the origins in API_ORIGINS as browsers send them, "*" for all. Raises SettingError."""
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


def is_foreign(origin: str, hosts: Collection[str], site: str, allowed: Collection[str]) -> bool:
    """Return whether a browser sent a request for a page that is neither the server's own nor of a site in `allowed`.

    `origin` and `site` are the headers Origin and Sec-Fetch-Site, "" without them; `hosts` are the names under which
    the client may know this server: the header Host, and the one that a proxy reports. A page can set none of them.
    """
    if "*" in allowed or origin.lower() in allowed:
        return False
    if not origin:
        return site == "cross-site"
    scheme, _, authority = origin.lower().partition("://")
    port = OWN_PORTS.get(scheme, "/")
    return authority.removesuffix(port) not in {host.lower().removesuffix(port) for host in hosts}


def is_numbered(host: str) -> bool:
    """Return whether a Host is localhost or an IP address, which no page elsewhere can have as its own.

    The owner of any other name may have made it lead here after a browser loaded the page (DNS rebinding).
    """
    name = host.lower().rpartition(":")[0] if re.search(r":\d*$", host) else host.lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
