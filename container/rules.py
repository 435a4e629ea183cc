"""What the front allows: its settings, read once, and the inputs that the model has."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import settings
from settings import access

MOST_BODY_MB = 100  # of Cog's server itself
# A URL that every parser reads in the same way: no user, no backslash, no blank.
WEBHOOK = re.compile(r"(https?)://([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?(?:[/?#][!-\[\]-~]*)?", re.ASCII | re.I)
WEBHOOKS_ENTRY = re.compile(r"(?:https?://)?([a-z0-9][a-z0-9.-]{0,252}|\[[0-9a-f:.]+\])(?::\d{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Rules:
    """What the front allows to whom."""

    inputs: frozenset[str]
    urls: frozenset[str]
    """The inputs that are URLs of files."""
    body_bytes: int
    bodies_bytes: int
    body_values: int
    connections: int
    slots: int
    """Predictions that Cog's server computes at once."""
    webhooks: tuple[str, ...]
    api_key: str | None
    origins: tuple[str, ...]

    def allows_webhook(self, url: str) -> bool:
        """Return whether WEBHOOKS names the host or origin of a webhook."""
        match = WEBHOOK.fullmatch(url)
        if not match:
            return False
        scheme, host, port = match[1].lower(), match[2].lower(), match[3]
        authority = host if port is None or port == access.OWN_PORTS[scheme][1:] else f"{host}:{port}"
        return any(each in self.webhooks for each in ("*", host, authority, f"{scheme}://{authority}"))


def read_rules(schema: Path) -> Rules:
    """Return the rules, from the environment and the model's OpenAPI document. Raises SettingError."""
    document = json.loads(schema.read_text(encoding="utf-8"))
    properties = document["components"]["schemas"]["Input"]["properties"]
    return Rules(
        inputs=frozenset(properties),
        urls=frozenset(name for name, each in properties.items() if each.get("format") == "uri"),
        body_bytes=min(settings.count("COG_BODY_MB", MOST_BODY_MB), MOST_BODY_MB) << 20,
        bodies_bytes=settings.count("COG_BODIES_MB", 512) << 20,
        body_values=settings.count("COG_BODY_VALUES", 1 << 20),
        connections=settings.count("MAX_CONNECTIONS", 1_024),
        slots=settings.count("COG_MAX_CONCURRENCY", 256),
        webhooks=webhooks(),
        api_key=access.key(),
        origins=tuple(access.origins()),
    )


def webhooks() -> tuple[str, ...]:
    """Return the hosts and origins in WEBHOOKS, "*" for all. Raises SettingError naming a wrong one."""
    found = []
    for part in (settings.text("WEBHOOKS") or "").split(","):
        entry = part.strip().removesuffix("/").lower()
        if entry and entry != "*" and not WEBHOOKS_ENTRY.fullmatch(entry):
            raise settings.SettingError(
                f"WEBHOOKS: {part.strip()[:200]!r} names no host; give hosts as hooks.example.org or "
                "https://hooks.example.org:8443, with commas between several, or * for all"
            )
        if entry:
            found.append(entry.removesuffix(access.OWN_PORTS.get(entry.partition("://")[0], "/")))
    return tuple(found)
