"""Settings: environment variables, in the forms in which files and orchestrators set them.

An error never shows the value of a text, which may be a secret.
"""

import logging
import os
import re
from collections.abc import Sequence

logger = logging.getLogger(__name__)

# Kubernetes sets such a name to tcp://10.96.0.12:80 if a Service has the name before _PORT.
LINKED_NAME = re.compile(r".+_PORT")
LINK = re.compile(r"(tcp|udp|sctp)://\S+", re.ASCII)
# Megabytes of 12 digits are bytes of less than 64 bits.
NUMBER = re.compile(r"\d{1,12}", re.ASCII)
PORTS = range(1, 65_536)
PORTS_IN_WORDS = "a whole number from 1 to 65,535"


class SettingError(ValueError):
    """A setting that cannot be used: its name, the problem and the remedy."""


def text(name: str) -> str | None:
    """Return an environment variable without surrounding blanks and line ends, None if it is unset or blank.

    Raises SettingError for quotes around it, or control characters in it.
    """
    value = os.environ.get(name, "").strip()
    if LINKED_NAME.fullmatch(name) and LINK.fullmatch(value):
        service = name.removesuffix("_PORT").lower().replace("_", "-")
        logger.warning(
            "%s is %s, as Kubernetes sets it for a Service called %r, and is ignored; set it in the pod's env, or "
            "enableServiceLinks: false in the pod's spec", name, value, service,
        )  # fmt: skip
        return None
    if value[:1] in ('"', "'") and value.endswith(value[:1]):
        raise SettingError(f"{name} is in quotes, which docker's --env-file keeps; leave them out")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise SettingError(f"{name} has a line end or another control character in it; set it to a single line")
    return value or None


def number(name: str, default: int) -> int:
    """Return an environment variable as a whole number, or the default if it is unset. Raises SettingError."""
    value = text(name)
    if value is None:
        return default
    if not NUMBER.fullmatch(value):
        remedy = f"set it to a whole number of up to 12 digits, or leave it unset for {default:,}"
        raise SettingError(f"{name} is {value[:80]!r}; {remedy}")
    return int(value)


def count(name: str, default: int) -> int:
    """Return an environment variable as a whole number of 1 or more, or the default if it is unset.

    Raises SettingError.
    """
    value = number(name, default)
    if value < 1:
        raise SettingError(f"{name} is 0; set it to 1 or more, or leave it unset for {default:,}")
    return value


def port(name: str, default: int) -> int:
    """Return an environment variable as a port, or the default if it is unset. Raises SettingError."""
    value = text(name)
    if value is None or value == str(default):
        return default
    if not (NUMBER.fullmatch(value) and int(value) in PORTS):
        raise SettingError(f"{name} is {value[:80]!r}; set it to a port, {PORTS_IN_WORDS}, or leave it unset")
    return int(value)


def choice(name: str, choices: Sequence[str], default: str) -> str:
    """Return which of `choices`, all in lower case, an environment variable names. Raises SettingError."""
    value = text(name) or default
    if value.lower() not in choices:
        words = f"{', '.join(choices[:-1])} or {choices[-1]}"
        raise SettingError(f"{name} is {value[:80]!r}; set it to {words}, or leave it unset")
    return value.lower()
