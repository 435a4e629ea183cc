"""Files of SQL in parts: each begins with a line `-- == NAME`, a search's with `-- == NAME, of TABLES AND INDEXES`."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

from examples.trial import WORDS, Search, Stored

Searches = Mapping[str, tuple[list[str], str]]
"""For each search the tables and indexes that it needs, and its SQL."""


def parts_of(name: str) -> tuple[dict[str, str], Searches]:
    """Return a file's statements by name, and its searches."""
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    statements, searches = dict[str, str](), dict[str, tuple[list[str], str]]()
    for title, body in re.findall(r"^-- == (.+)\n((?:(?!-- == ).*\n)+)", text, re.MULTILINE):
        part, _, needs = title.partition(", of ")
        if needs:
            searches[part] = (needs.split(), body)
        else:
            statements[part] = body
    return statements, searches


def stored(searches: Searches, sizes: Mapping[str, int], search: Callable[[str], Search]) -> dict[str, Stored]:
    """Return the searches by vectors, with the bytes of what each needs, from those of tables and indexes."""
    return {
        name: Stored(search(sql), sum(sizes[part] for part in parts))
        for name, (parts, sql) in searches.items()
        if name != WORDS
    }
