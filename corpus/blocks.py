"""Windows of rows: what is computed and stored at once, with exact duplicates found.

Windows depend on nothing but the rows and the limits: read again, a corpus gives the same ones, which is what lets an
interrupted run go on and end with the same bytes.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from corpus.rows import BadRow, Id, Row

DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a window may grow, in rows and in characters of texts and carried columns.

    `remembered` is how many distinct texts of earlier windows are known again, a power of two; each takes 24 bytes.
    """

    rows: int = 32_768
    chars: int = 1 << 25
    remembered: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """Rows numbers[i], ids[i], carried[i], whose vectors are those of text sources[i, 1] of window sources[i, 0].

    `texts` and `titles` are the window's own distinct texts, in the order in which they came. `digest` is over all of
    its rows, with the unfit ones, `bad`.
    """

    index: int
    numbers: list[int]
    ids: list[Id]
    carried: list[tuple[Any, ...]]
    sources: np.ndarray
    """int64 [rows, 2]"""
    texts: list[str]
    titles: list[str | None]
    text_numbers: list[int]
    """The number of the first row of each text."""
    bad: list[BadRow]
    digest: str


def windows(rows: Iterable[Row | BadRow], limits: Limits) -> Iterator[Window]:
    """Gather rows into windows. A text is computed once in its window, and once in all where `Seen` remembers it."""
    seen = Seen(limits.remembered)
    gathered: list[Row | BadRow] = []
    index = chars = 0
    for row in rows:
        gathered.append(row)
        chars += _chars(row) if isinstance(row, Row) else 0
        if len(gathered) >= limits.rows or chars >= limits.chars:
            yield _window(index, gathered, seen)
            gathered, chars, index = [], 0, index + 1
    if gathered:
        yield _window(index, gathered, seen)


def _chars(row: Row) -> int:
    return len(row.text) + sum(len(value) for value in row.carried if isinstance(value, (str, bytes)))


def _window(index: int, gathered: list[Row | BadRow], seen: "Seen") -> Window:
    rows = [row for row in gathered if isinstance(row, Row)]
    bad = [row for row in gathered if isinstance(row, BadRow)]
    digests = [_digest(row) for row in rows]
    firsts: dict[bytes, int] = {}
    for i, digest in enumerate(digests):
        firsts.setdefault(digest, i)
    distinct = np.frombuffer(b"".join(firsts), dtype="<u8").reshape(-1, 2)
    places = seen.look(distinct)  # int64 [distinct, 2], -1 where a text is new
    new = np.flatnonzero(places[:, 0] < 0)
    places[new] = np.stack([np.full(len(new), index), np.arange(len(new))], axis=1)
    seen.keep(distinct[new], places[new])
    order = {digest: i for i, digest in enumerate(firsts)}
    first_rows = list(firsts.values())
    own = [rows[first_rows[i]] for i in new]
    numbers, ids = [row.number for row in rows], [row.id for row in rows]
    carried = [row.carried for row in rows]
    whole = hashlib.blake2b(b"".join(digests), digest_size=DIGEST_BYTES)
    whole.update(repr((numbers, ids, carried, bad)).encode("utf-8", "surrogatepass"))
    return Window(
        index=index,
        numbers=numbers,
        ids=ids,
        carried=carried,
        sources=places[[order[digest] for digest in digests]].reshape(-1, 2),
        texts=[row.text for row in own],
        titles=[row.title for row in own],
        text_numbers=[row.number for row in own],
        bad=bad,
        digest=whole.hexdigest(),
    )


def _digest(row: Row) -> bytes:
    title = "" if row.title is None else row.title
    return hashlib.blake2b(f"{len(title)}:{title}{row.text}".encode(), digest_size=DIGEST_BYTES).digest()


class Seen:
    """Where texts were computed, by digest, in a table of fixed size: a text takes its slot from an earlier one."""

    def __init__(self, slots: int) -> None:
        if slots < 1 or slots & (slots - 1):
            raise ValueError(f"remembered: {slots} is not a power of two; use one, such as {1 << 20}")
        self._digests = np.zeros((slots, 2), dtype=np.uint64)
        self._places = np.full((slots, 2), -1, dtype=np.int32)

    def look(self, digests: np.ndarray) -> np.ndarray:
        """Return int64 [n, 2] for uint64 digests [n, 2]: window and text, or -1, -1 where it is not remembered."""
        slots = self._slots(digests)
        known = (self._digests[slots] == digests).all(axis=1)
        return np.where(known[:, None], self._places[slots], -1).astype(np.int64)

    def keep(self, digests: np.ndarray, places: np.ndarray) -> None:
        """Remember texts; of two that share a slot, the later one."""
        slots = self._slots(digests)
        last = len(slots) - 1 - np.unique(slots[::-1], return_index=True)[1]
        self._digests[slots[last]], self._places[slots[last]] = digests[last], places[last]

    def _slots(self, digests: np.ndarray) -> np.ndarray:
        return (digests[:, 0] & np.uint64(len(self._places) - 1)).astype(np.int64)
