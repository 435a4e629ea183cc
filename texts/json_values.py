"""Counts the values of JSON before it is decoded, as ten million values take many times the memory of their bytes.

numpy scans the bytes without holding the interpreter's lock; decoding holds it from beginning to end.
"""

from collections.abc import Iterator

import numpy as np

CHUNK_BYTES = 1 << 20
COMMA, QUOTE, BACKSLASH = b',"\\'
# Decoding a string, a list, an object, or a name in an object takes about as long as this many numbers.
PART_VALUES = 16


class TooManyValues(ValueError):
    """JSON with more values than may be decoded."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"it has more than {limit:,} values, of which each string, list and object counts as 16")


def spans_of_strings(text: bytes | bytearray, most_values: int, least_bytes: int) -> Iterator[list[tuple[int, int]]]:
    """Yield, for each megabyte of JSON, where strings of more than `least_bytes` begin and end, with their quotes.

    A number counts as 1 value, anything else as PART_VALUES. Raises TooManyValues beyond `most_values`. Invalid JSON
    gives spans too; the decoder refuses it.
    """
    whole = np.frombuffer(text, dtype=np.uint8)
    values = 0
    is_escaped, opened = False, -1  # whether the next byte is escaped; where the string that it is in began, if any
    for begin in range(0, len(whole), CHUNK_BYTES):
        chunk = whole[begin : begin + CHUNK_BYTES]
        quotes, is_escaped = _quotes(chunk, is_escaped)
        marks = np.flatnonzero((chunk == COMMA) | ((chunk | 0x20) == ord("{")))  # [ and { differ by that bit
        outside = (np.searchsorted(quotes, marks) + (opened >= 0)) % 2 == 0
        commas = int(np.count_nonzero(chunk[marks[outside]] == COMMA))
        values += commas + PART_VALUES * (int(np.count_nonzero(outside)) - commas) + PART_VALUES * len(quotes) // 2
        if values > most_values:
            raise TooManyValues(most_values)
        ends = np.concatenate([[opened] if opened >= 0 else [], quotes + begin]).astype(np.int64)
        opened = int(ends[-1]) if len(ends) % 2 else -1
        spans = ends[: len(ends) // 2 * 2].reshape(-1, 2)
        long = spans[spans[:, 1] - spans[:, 0] > least_bytes]
        yield [(first, last + 1) for first, last in long.tolist()]


def _quotes(chunk: np.ndarray, is_escaped: bool) -> tuple[np.ndarray, bool]:
    """Return the positions of unescaped quotes, and whether the byte after the chunk is escaped."""
    quotes = np.flatnonzero(chunk == QUOTE)
    backslashes = chunk == BACKSLASH
    if not is_escaped and not backslashes.any():
        return quotes, False
    # For each byte, and the byte after the chunk: the last byte before it that is no backslash (-2: before an escape).
    places = np.arange(len(chunk), dtype=np.int32)
    others = np.empty(len(chunk) + 1, dtype=np.int32)
    others[0] = -2 if is_escaped else -1
    np.maximum.accumulate(np.where(backslashes, others[0], places), out=others[1:])
    odd = (np.arange(len(chunk) + 1, dtype=np.int32) - 1 - others) % 2 == 1
    return quotes[~odd[quotes]], bool(odd[-1])
