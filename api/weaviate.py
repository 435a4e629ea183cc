"""What Weaviate's text2vec-transformers asks of its inference container, below /weaviate, /weaviate/passage and /query.

Weaviate since 1.31 says in each request whether the text is a passage or a query. The two further URLs are for older
versions, which have a setting for each.
"""

from typing import Any

import msgspec

from api.fields import Whole, agreed, dimensions_of, one_of
from api.names import aliases
from api.operations import Answer, Api, Call, Operation, numbers, options_of
from api.refusal import Refusal
from api.status import Status, state
from texts.options import EMBEDDING_DIMS
from texts.request import Names, Texts

ROOT = "/weaviate"
TASKS = {"passage": "retrieval_document", "query": "retrieval_query"}
POOLING = ("masked_mean",)


class Config(msgspec.Struct, forbid_unknown_fields=True):
    """How the text is embedded: `task_type` is `passage` or `query`; the only pooling is the model's, `masked_mean`."""

    pooling_strategy: str | None = None
    task_type: str | None = None
    dimensions: Whole | None = None


class VectorsRequest(msgspec.Struct, forbid_unknown_fields=True):
    """A text. Weaviate sends the answer's fields, too, all empty."""

    text: str
    config: Config | None = None
    dims: Any = None
    vector: Any = None
    error: Any = None


class VectorsAnswer(msgspec.Struct):
    """The vector, and how many numbers it has."""

    text: str
    vector: list[float]
    dim: int


class Meta(msgspec.Struct):
    """What Weaviate shows of this module: the weights, and the dimensions that they can give."""

    model: dict[str, Any]


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return the error that Weaviate reads. Its setting for this server is a URL, and so the only place for a key."""
    remedy = "put this server's API_KEY into the URL in Weaviate's settings, as in http://weaviate:KEY@host:8080"
    return {"error": refusal.message if refusal.kind != "key" else f"the key is missing or wrong; {remedy}{ROOT}"}


async def vectors(call: Call) -> Answer:
    """Embed a text, as the URL or the request says: as a passage or as a query."""
    asked: VectorsRequest = call.body
    config = asked.config or Config()
    of_url = next((kind for kind in TASKS if call.scope["path"].startswith(f"{ROOT}/{kind}/")), None)
    one_of("config.pooling_strategy", config.pooling_strategy, POOLING)
    one_of("config.task_type", config.task_type, TASKS)
    kind = agreed(("the URL", f"{ROOT}/{of_url}", of_url), ("config.task_type", config.task_type, config.task_type))
    if kind is None:
        raise ValueError(
            "config.task_type: it is missing, as in Weaviate before 1.31; set TRANSFORMERS_PASSAGE_INFERENCE_API to "
            f"{ROOT}/passage and TRANSFORMERS_QUERY_INFERENCE_API to {ROOT}/query of this server"
        )
    options = options_of(TASKS[kind], embedding_dim=dimensions_of(("config.dimensions", config.dimensions)))
    embedded = await call.service.embed(Texts([asked.text], single=True, names=Names("text")), options)
    return Answer(
        lambda: VectorsAnswer(asked.text, numbers(embedded.vectors)[0], options.width),
        [embedded],
        characters=len(asked.text),
    )


async def meta(call: Call) -> Meta:
    """Return what is served."""
    return Meta({"name": aliases(call.service)[0], "weights": call.service.model, "dimensions": EMBEDDING_DIMS})


API = Api("Weaviate", error)
OPERATIONS = [
    operation
    for base in (ROOT, *(f"{ROOT}/{kind}" for kind in TASKS))
    for operation in (
        Operation(API, "POST", f"{base}/vectors", "Embed a text.", vectors, VectorsRequest, VectorsAnswer),
        Operation(API, "GET", f"{base}/meta", "Say what is served.", meta, answers=Meta),
        Operation(API, "GET", f"{base}/.well-known/ready", "As /ready.", state, None, Status, True),
        Operation(API, "GET", f"{base}/.well-known/live", "As /live.", state, None, Status, True, True),
    )
]
