"""The body of a prediction: checked without decoding its texts, and rebuilt from what was checked."""

import difflib
import re
import secrets
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from container.refusal import Refusal
from container.rules import Rules
from texts.json_values import PART_VALUES, TooManyValues, spans_of_strings

# Smaller bodies are checked on the event loop and pass no gate.
SMALL_BYTES = 64 << 10
ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
ID_IN_WORDS = "give 1 to 64 of A-Z, a-z, 0-9, _ and -"
# The beginning of a JSON string that is a file's URL; no client escapes letters.
FILE_URL = re.compile(rb'"(https?:(//|\\/\\/)|data:)', re.IGNORECASE)
JSON = re.compile(rb'application/json\s*(;\s*charset="?utf-?8"?\s*)?;?', re.IGNORECASE)
# The first half of a surrogate pair without the second.
HALF = re.compile(rb"\\u[dD][89abAB]..(?!\\u[dD][c-fC-F])")
NOTHING = msgspec.Raw()


class Body(msgspec.Struct, forbid_unknown_fields=True):
    """What a client may send. `created_at` is dropped: only older servers of Cog's took it."""

    id: str | None = None
    input: dict[str, msgspec.Raw] | None = None
    context: msgspec.Raw = NOTHING
    webhook: str | None = None
    webhook_events_filter: msgspec.Raw = NOTHING
    created_at: msgspec.Raw = NOTHING


DECODER = msgspec.json.Decoder(Body)
FIELDS = Body.__struct_fields__


def check_id(given: str) -> None:
    """Raise Refusal for an id that is more than a name, as Cog's server makes a folder of it."""
    if not ID.fullmatch(given):
        raise Refusal(422, f"id: {given[:80]!r} is no id; {ID_IN_WORDS}", ("body", "id"))


def check_type(content_type: bytes | None, coding: bytes | None) -> None:
    """Raise Refusal unless a body is plain JSON: a web page may send other types to any site."""
    if content_type is None or not JSON.fullmatch(content_type.strip()):
        raise Refusal(415, "Content-Type: it is not application/json; send JSON in UTF-8 and say so")
    if coding is not None and coding.strip().lower() != b"identity":
        raise Refusal(415, "Content-Encoding: Cog's server takes none; send the body uncompressed")


class Checked(NamedTuple):
    """The parts of a rebuilt body, its id ("" if it has none), and whether the prediction is large."""

    parts: list[bytes]
    name: str
    is_large: bool


def rebuild(body: bytes | bytearray, url_id: str | None, rules: Rules, names_it: bool) -> Checked:
    """Return a body rebuilt for Cog's server. It gets an id if it is large, or with `names_it`. Raises Refusal."""
    is_large = len(body) > SMALL_BYTES
    if len(body) * PART_VALUES > rules.body_values:
        _count_values(body, rules.body_values)
    found = _decoded(body, rules)
    inputs = found.input or {}
    if not inputs.keys() <= rules.inputs:
        raise _misspelt(next(name for name in inputs if name not in rules.inputs), rules)
    for each in rules.urls & inputs.keys():
        is_large |= _is_file(each, bytes(memoryview(inputs[each])[:16]))
    name = _id_of(found, url_id) or (f"pred_{secrets.token_hex(8)}" if is_large or names_it else "")
    return Checked(_parts(found, inputs, name, rules), name, is_large)


def _count_values(body: bytes | bytearray, most: int) -> None:
    try:
        for _ in spans_of_strings(body, most, len(body)):
            pass
    except TooManyValues as error:
        raise Refusal(413, f"body: {error}; send fewer at once, or set COG_BODY_VALUES") from None


def _decoded(body: bytes | bytearray, rules: Rules) -> Body:
    try:
        return DECODER.decode(body) if body else Body()
    except msgspec.ValidationError as error:
        raise _invalid(str(error), rules) from None
    except RecursionError:
        raise Refusal(400, "body: its lists or objects are nested too deeply; send the inputs flat") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        is_half = HALF.search(memoryview(body)[: 1 << 20])
        problem = "half of a surrogate pair" if is_half else str(error)[:120]
        raise Refusal(400, f"body: it is not JSON ({problem}); send a JSON object in UTF-8") from None


def _invalid(problem: str, rules: Rules) -> Refusal:
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", problem, re.DOTALL):
        name = unknown[1][:80]
        near = [] if name in rules.inputs else difflib.get_close_matches(name, FIELDS, 1)
        others = "id, context, webhook and webhook_events_filter"
        remedy = f"did you mean {near[0]!r}?" if near else f'inputs belong in "input", and beside it only {others}'
        return Refusal(422, f"{name!r} is no field of a prediction; {remedy}", ("body", name))
    what, _, where = problem.partition(" - at `$")
    field = where.strip("`.")[:80]
    what = what.replace("`", "").replace("Expected", "expected").replace(" | null", "")
    return Refusal(422, f"{field or 'body'}: {what}; /openapi.json has the fields", ("body", *filter(None, [field])))


def _misspelt(name: str, rules: Rules) -> Refusal:
    """Return the refusal of an unknown input, which Cog's server would silently drop."""
    near = difflib.get_close_matches(name[:80], sorted(rules.inputs), 1)
    remedy = f"did you mean {near[0]!r}?" if near else "/openapi.json has the inputs"
    return Refusal(422, f"{name[:80]!r} is no input; {remedy}", ("body", "input", name[:80]))


def _is_file(name: str, start: bytes) -> bool:
    """Return whether an input is a file's URL. Raises Refusal for any other string; other types pass."""
    if start[:1] == b'"' and not FILE_URL.match(start):
        raise Refusal(
            422, f"{name}: it is no URL; give one that begins with http://, https:// or data:", ("body", "input", name)
        )
    return start[:1] == b'"'


def _id_of(found: Body, url_id: str | None) -> str | None:
    if found.id is not None:
        check_id(found.id)
        if url_id is not None and found.id != url_id:
            raise Refusal(422, "id: it differs from the id in the URL; send one of the two", ("body", "id"))
    return url_id or found.id


def _parts(found: Body, inputs: Mapping[str, msgspec.Raw], name: str, rules: Rules) -> list[bytes]:
    parts = [b'{"input":{']
    for key, value in inputs.items():
        parts += (b'"%s":' % key.encode(), value, b",")
    parts[-1] = b"}" if inputs else b'{"input":{}'
    if name:
        parts.append(b',"id":"%s"' % name.encode())
    if found.context != NOTHING:
        parts += (b',"context":', found.context)
    if found.webhook is not None:
        if not rules.allows_webhook(found.webhook):
            raise Refusal(
                422, "webhook: this server may not send there; leave it out, or name its host in WEBHOOKS",
                ("body", "webhook"),
            )  # fmt: skip
        parts.append(b',"webhook":' + msgspec.json.encode(found.webhook))
    if found.webhook_events_filter != NOTHING:
        parts += (b',"webhook_events_filter":', found.webhook_events_filter)
    return [*parts, b"}"]
