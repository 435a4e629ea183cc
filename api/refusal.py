"""Why a request is refused, in the words and numbers that every API's own error is made of."""

import re
from dataclasses import dataclass

import msgspec

from batching.errors import Busy, EngineStopped
from service import TooLong

RETRY_AFTER_S = 1
# What a request is refused for, and HTTP's status for it where an API has no other.
STATUSES = {
    "invalid": 400,
    "long": 400,
    "body": 400,
    "key": 401,
    "model": 404,
    "path": 404,
    "method": 405,
    "large": 413,
    "coding": 415,
    "busy": 429,
    "failed": 500,
    "unready": 503,
}


# What to do about fields that some clients send.
REMEDIES = {
    "messages": "send texts in 'input'; with mteb's wrapper set use_chat_template=False",
    "prompt": "send texts in 'input'",
    "use_activation": "use 'normalized' for vectors of unit length or not",
}


@dataclass
class Refusal(Exception):
    """A request that is not answered as asked; `message` names the field, its problem and the remedy."""

    kind: str
    """One of STATUSES."""
    message: str

    @property
    def field(self) -> str | None:
        """The field at fault, such as `input[3]`, where it is one field's fault."""
        name = self.message.partition(": ")[0]
        return name if self.kind in ("invalid", "long", "model") and re.fullmatch(r"[\w.\[\]]+", name) else None


def refusal_of(error: Exception) -> Refusal | None:
    """Return why an exception refuses the request; None for an exception that nothing explains."""
    match error:
        case Refusal():
            return error
        case msgspec.ValidationError():
            return Refusal("invalid", _invalid(str(error)))
        case msgspec.DecodeError() | UnicodeDecodeError():
            return Refusal("body", f"body: it is not JSON ({error}); send a JSON object in UTF-8")
        case RecursionError():
            return Refusal("body", "body: its lists or objects are nested too deeply; send the fields in /docs")
        case TooLong():
            return Refusal("long", str(error))
        case ValueError():
            return Refusal("invalid", str(error))
        case Busy():
            return Refusal("busy", str(error))
        case EngineStopped():
            return Refusal("unready", str(error))
        case RuntimeError():
            return Refusal("failed", str(error))
    return None


def _invalid(problem: str) -> str:
    """Return a message that begins with the field of msgspec's, which ends with the field."""
    what, _, where = problem.partition(" - at `$")
    where = where.strip("`.")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        field = unknown[1][:80]
        name = ".".join(filter(None, (where, field if re.fullmatch(r"\w+", field) else repr(field))))
        remedy = REMEDIES.get(name, "leave it out, or see /docs for the fields that there are")
        return f"{name}: this API has no such field; {remedy}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        return f"{'.'.join(filter(None, (where, missing[1])))}: it is missing; /docs has an example"
    what = what.replace("`", "").replace("Expected", "expected")[:120]
    return f"{where or 'body'}: {what}; /docs has the fields and their types"
