"""JSON bodies decoded in pieces, as a decoder holds the interpreter's lock until it is done."""

import functools
import re
import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

from api.refusal import Refusal
from engine.pieces import Pieces
from texts.json_values import TooManyValues, spans_of_strings

# Longer strings are decoded by themselves, so the rest of a body takes some milliseconds.
LONG_BYTES = 256
# Strings of this size take a few milliseconds.
PIECE_BYTES = 1 << 22
# Names, numbers and choices are shorter than this. Only texts are not.
MOST_CHARACTERS = 10_000
TEXT_FIELDS = frozenset(
    {"input", "inputs", "texts", "text", "titles", "title", "prompt", "sentences", "source_sentence"}
)

# Where a string can be cut: before an escape that is not the second half of a pair, or after unescaped characters.
CUT = re.compile(rb"(?<!\\)(?=\\[^u]|\\u(?![dD][c-fC-F]))|(?<=[^\\]{12})(?![\x80-\xbf])")
STRING = msgspec.json.Decoder(str)


def decode_in_pieces(decoder: "msgspec.json.Decoder[Any]", body: bytes | bytearray, most_values: int) -> Pieces[Any]:
    """Return what a decoder makes of a body. Raises Refusal for too many values, before any is made."""
    spans: list[tuple[int, int]] = []
    try:
        for some in spans_of_strings(body, most_values, LONG_BYTES):
            spans += some
            yield
    except TooManyValues as error:
        raise Refusal("large", f"body: {error}; send fewer at once (API_BODY_VALUES)") from None
    view = memoryview(body)
    # Placeholders for the strings, which no client can guess.
    mark = secrets.token_hex(12)
    rest: list[bytes | memoryview] = []
    strings: list[str] = []
    end = unyielded = 0
    for first, last in spans:
        rest += [view[end:first], b'"%s%d"' % (mark.encode(), len(strings))]
        strings.append("")
        for part in _parts(view[first + 1 : last - 1]):
            strings[-1] += STRING.decode(b'"%s"' % part)
            unyielded += len(part)
            if unyielded > PIECE_BYTES:
                unyielded = 0
                yield
        end = last
    rest.append(view[end:])
    try:
        decoded = decoder.decode(b"".join(rest))
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(re.sub(rf"{mark}\d+", "...", str(error))) from None
    yield
    return _restored(decoded, mark, strings, "")


def _parts(string: memoryview) -> Iterator[memoryview]:
    """Yield a string's JSON, without quotes, in parts of about PIECE_BYTES. Each part is valid if the whole is."""
    first = 0
    while len(string) - first > PIECE_BYTES:
        cut = CUT.search(string, first + PIECE_BYTES, first + PIECE_BYTES + (1 << 16))
        if cut is None:
            break
        yield string[first : cut.start()]
        first = cut.start()
    yield string[first:]


def _restored(value: Any, mark: str, strings: list[str], field: str) -> Any:
    """Return a decoded value with its long strings. Raises Refusal for a long string in a field that takes no text.

    Untyped values, which nothing reads, are left as they are.
    """
    if isinstance(value, str) and value.startswith(mark):
        string = strings[int(value[len(mark) :])]
        if len(string) > MOST_CHARACTERS and field not in TEXT_FIELDS:
            raise Refusal(
                "invalid", f"{field}: it has {len(string):,} characters, more than any choice; /docs has the fields"
            )
        return string
    if isinstance(value, list):
        value[:] = [each if isinstance(each, int) else _restored(each, mark, strings, field) for each in value]
    elif isinstance(value, msgspec.Struct):
        for name, encoded_name in _fields(type(value)):
            if not isinstance(found := getattr(value, name), int | float | None):
                setattr(value, name, _restored(found, mark, strings, encoded_name))
    return value


@functools.cache
def _fields(kind: type[msgspec.Struct]) -> list[tuple[str, str]]:
    return [(field.name, field.encode_name) for field in msgspec.structs.fields(kind)]
