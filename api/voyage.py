"""Voyage's API for documents in chunks, POST /v1/contextualizedembeddings. api/openai.py has its /v1/embeddings."""

from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import Any, Literal

import msgspec

from api import names
from api.fields import Whole, chunking_asked, dimensions_of, one_of
from api.openai import PRECISIONS
from api.operations import Answer, Api, Call, Operation, base64s, numbers, options_of
from api.refusal import Refusal
from service import Service, TooLong
from tasks import TITLED_TASK
from texts.options import Options
from texts.request import Names, Texts, check_count

TASKS: names.Tasks = {"query": "retrieval_query", "document": "retrieval_document", **names.OUR_TASKS}
CHUNK_SIZE = 512
"""Tokens of a chunk that the server cuts, as Voyage documents it."""
# What the fields are called that the chunking's own errors name.
FIELDS = {"chunk": "chunk_size", "overlap": "chunk_overlap"}
CHUNK = "inputs[{0[0]}][{0[1]}]"


class ContextualizedRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Documents as lists of their chunks, in order; or whole documents, with `enable_auto_chunking`; or queries."""

    inputs: list[str | list[str]]
    model: str | None = None
    input_type: str | None = None
    output_dimension: Whole | None = None
    output_dtype: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    enable_auto_chunking: bool | None = None
    chunk_size: Whole | None = None
    chunk_overlap: Whole | None = None


class ChunkEmbedding(msgspec.Struct):
    """The vector of a chunk: a list of numbers, or base64 of its bytes. `text` is a chunk that the server cut."""

    index: int
    embedding: list[float] | str
    text: str | msgspec.UnsetType = msgspec.UNSET
    object: str = "embedding"


class DocumentEmbeddings(msgspec.Struct):
    """The vectors of a document's chunks, in their order."""

    index: int
    data: list[ChunkEmbedding]
    object: str = "list"


class Usage(msgspec.Struct):
    """Tokens that the vectors are means of."""

    total_tokens: int


class ContextualizedAnswer(msgspec.Struct):
    """The documents in the order of the inputs; `model` says which weights computed the vectors."""

    data: list[DocumentEmbeddings]
    model: str
    usage: Usage
    object: str = "list"


def error(refusal: Refusal, status: int) -> dict[str, Any]:
    """Return Voyage's error."""
    return {"detail": refusal.message}


async def embed(call: Call) -> Answer:
    """Embed the chunks of documents, each chunk with the others of its document around it."""
    asked: ContextualizedRequest = call.body
    try:
        options = _options(asked, call.service)
        texts = _texts(asked, options)
        embedded = await call.service.embed(texts, options)
    except TooLong as error:
        raise TooLong(f"{str(error).partition('; ')[0]}; send it in smaller chunks") from None
    except ValueError as error:
        fields, _, problem = str(error).partition(": ")
        raise ValueError(f"{', '.join(FIELDS.get(name, name) for name in fields.split(', '))}: {problem}") from None
    spans = embedded.chunks or []
    owners = embedded.owners
    if texts.documents is not None:
        owners = [*chain.from_iterable(repeat(document, size) for document, size in enumerate(texts.documents))]

    def write() -> ContextualizedAnswer:
        vectors = (base64s if asked.encoding_format == "base64" else numbers)(embedded.vectors)
        cut = [texts.texts[text][start:end] for text, start, end in spans] or [msgspec.UNSET] * len(vectors)
        rows = zip(owners, vectors, cut, strict=True)
        documents = [
            DocumentEmbeddings(
                document, [ChunkEmbedding(i, vector, text) for i, (_, vector, text) in enumerate(chunks)]
            )
            for document, chunks in groupby(rows, key=itemgetter(0))
        ]
        return ContextualizedAnswer(documents, call.service.model, Usage(embedded.tokens))

    return Answer(write, [embedded], characters=sum(end - start for _, start, end in spans))


def _options(asked: ContextualizedRequest, service: Service) -> Options:
    task = names.task_of(service, {"model": asked.model}, {"input_type": asked.input_type}, TASKS)
    chunking = None
    if asked.enable_auto_chunking:
        if task not in (None, TITLED_TASK):
            raise ValueError(
                f"enable_auto_chunking: it cuts documents, and the task is {task!r}; leave one of them out"
            )
        size = CHUNK_SIZE if asked.chunk_size is None else asked.chunk_size
        chunking = chunking_asked(size, asked.chunk_overlap, late=True)
    elif asked.chunk_size is not None or asked.chunk_overlap is not None:
        field = "chunk_size" if asked.chunk_size is not None else "chunk_overlap"
        raise ValueError(f"{field}: it needs enable_auto_chunking; send that, too, or leave {field} out")
    return options_of(
        task,
        embedding_dim=dimensions_of(("output_dimension", asked.output_dimension)),
        precision=PRECISIONS[one_of("output_dtype", asked.output_dtype, PRECISIONS, "float")],
        truncate="none",
        chunking=chunking,
    )


def _texts(asked: ContextualizedRequest, options: Options) -> Texts:
    """Return the chunks of all documents, or the whole documents that the server cuts."""
    check_count(asked.inputs, "inputs")
    is_query = options.task == "retrieval_query"
    remedy = "give a list of the document's chunks"
    if is_query or options.chunking:
        remedy = f"give each {'query' if is_query else 'document'} as one text"
    documents = [[each] if isinstance(each, str) else each for each in asked.inputs]
    for position, chunks in enumerate(documents):
        name = f"inputs[{position}]"
        if not chunks or (len(chunks) > 1 and (is_query or options.chunking)):
            raise ValueError(f"{name}: it is a list of {len(chunks):,} texts; {remedy}")
        if isinstance(asked.inputs[position], str) and not (is_query or options.chunking):
            raise ValueError(
                f"{name}: it is a string; {remedy}, or send enable_auto_chunking, or for queries input_type 'query'"
            )
    if options.chunking:
        return Texts([text for [text] in documents], names=Names(texts="inputs[{}]", titles="inputs[{}]"))
    places = [(document, chunk) for document, chunks in enumerate(documents) for chunk in range(len(chunks))]
    sizes = [len(chunks) for chunks in documents]
    return Texts(
        [*chain.from_iterable(documents)],
        names=Names(texts=CHUNK, titles=CHUNK, positions=places),
        documents=sizes if max(sizes) > 1 else None,
    )


API = Api("Voyage", error, {"model": 400})
OPERATIONS = [
    Operation(
        API, "POST", "/v1/contextualizedembeddings", "Embed the chunks of documents.", embed, ContextualizedRequest,
        ContextualizedAnswer,
    ),
]  # fmt: skip
