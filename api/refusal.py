"""Why a request is refused: the kind and message that each API puts into its own form of error."""

import re
from dataclasses import dataclass

import msgspec

from batching.errors import Busy, EngineStopped
from service import TooLong

RETRY_AFTER_S = 1
# Kinds of refusals, with the HTTP status of each where an API has no other.
STATUSES = {
    "invalid": 400,
    "long": 400,
    "body": 400,
    "key": 401,
    "origin": 403,
    "model": 404,
    "path": 404,
    "method": 405,
    "large": 413,
    "coding": 415,
    "busy": 429,
    "failed": 500,
    "unready": 503,
}


CHUNKS = "only /v1/embeddings, /v1/contextualizedembeddings, /api/embed and /v2/embed make vectors of chunks"
# Remedies for fields that some clients send.
REMEDIES = {
    **dict.fromkeys(("chunk", "overlap", "late_chunking"), CHUNKS),
    "messages": "send texts in 'input'; with mteb's wrapper set use_chat_template=False",
    "prompt": "send texts in 'input'",
    "use_activation": "use 'normalized' for vectors of unit length or not",
}


@dataclass
class Refusal(Exception):
    """A refused request; `message` names the field, its problem and the remedy."""

    kind: str
    """One of STATUSES."""
    message: str

    @property
    def field(self) -> str | None:
        """The field at fault, such as `input[3]`; None where no single field is."""
        name = self.message.partition(": ")[0]
        return name if self.kind in ("invalid", "long", "model") and re.fullmatch(r"[\w.\[\]]+", name) else None


def refusal_of(error: Exception) -> Refusal | None:
    """Return the refusal that an exception stands for; None for an unexpected exception."""
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


# What the APIs call parts that are no text. EmbeddingGemma 2 has towers for them, which are not served.
MEDIA = {
    "inlineData", "inline_data", "fileData", "file_data", "image", "images", "image_url", "imageUrl", "input_image",
    "audio", "input_audio", "video",
}  # fmt: skip
NO_MEDIA = "only texts are embedded here, as no model for images, sounds or videos is served; send a text"


def _invalid(problem: str) -> str:
    """Return msgspec's message with the field at its beginning instead of its end."""
    what, _, where = problem.partition(" - at `$")
    where = where.strip("`.")
    if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        field = unknown[1][:80]
        name = ".".join(filter(None, (where, field if re.fullmatch(r"\w+", field) else repr(field))))
        if field in MEDIA:
            return f"{name}: {NO_MEDIA}"
        remedy = REMEDIES.get(name, "leave it out, or see /docs for its fields")
        return f"{name}: this API has no such field; {remedy}"
    if missing := re.fullmatch(r"Object missing required field `(.*)`", what):
        return f"{'.'.join(filter(None, (where, missing[1])))}: it is missing; /docs has an example"
    if re.match(r"Expected `[^`]*\bstr\b[^`]*`, got `object`", what):
        return f"{where}: a text is a string here; {NO_MEDIA}"
    what = what.replace("`", "").replace("Expected", "expected")[:120]
    return f"{where or 'body'}: {what}; /docs has the fields and their types"
