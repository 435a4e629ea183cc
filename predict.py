"""Cog's API: passes the inputs of a prediction to the service, and answers with the vectors."""

import asyncio
import functools
import gc
import importlib
import inspect
import json
import logging
import signal
import tempfile
import time
from dataclasses import replace
from typing import Any, NotRequired, TypedDict, cast

import cog
import numpy as np
import orjson
from cog import BaseRunner, Input, Path

import encoding
import settings
from batching.pools import NUMBERS, run
from container.prediction_folders import PredictionFolders, keep_answer
from corpus.asked_file import InputFile, check_beside_file, check_settings
from corpus.rows import Columns
from engine.tokenizer import Truncate
from fetching.input_file import InputFiles
from service import Embedded, Service
from settings import access, logs
from settings.version import NAMED
from texts.options import Options, chunking_of
from texts.request import Texts, read_texts

logger = logging.getLogger(__name__)

# Texts that a line of the log names; the answer's `truncated` has all.
CUT_LOGGED = 10


class Output(TypedDict):
    """The answer to texts. `embedding` is a base64 string, or a (nested) list of numbers for output_format `array`.

    With `chunk` it has a row for each chunk, and `chunks` has the text and characters of each: [text, start, end]. With
    output_format `vectors` the answer is the list alone, and with `file` the path of a file of vectors.
    """

    embedding: Any
    output_format: str
    shape: list[int]
    token_counts: list[int]
    truncated: list[int]
    prompted: list[int]
    chunks: NotRequired[list[list[int]]]
    processing_time_ms: float
    precision: str
    model: str


class PlainJson(dict[str, Any]):
    """A dict that Cog passes to `json.dumps` as it is. It walks a plain dict, with ten calls for every float in it."""


class PlainNumbers(np.ndarray):
    """An array that Cog passes to `json.dumps` as it is, since Cog takes what `tolist` returns."""

    def tolist(self) -> "PlainNumbers":  # type: ignore[override]
        """Return the array itself."""
        return self


def let_orjson_write_vectors() -> None:
    """Make Cog's server, which calls `json.dumps` for an answer, write vectors with orjson.

    That takes a tenth of the time, in which the interpreter can do nothing else. A float32 gets the digits that tell it
    from others, as in the other APIs.
    """
    dumps = json.dumps

    @functools.wraps(dumps)
    def faster(value: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, PlainJson | PlainNumbers):
            plain = value if isinstance(value, PlainJson) else np.asarray(value)
            return orjson.dumps(plain, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        return dumps(value, *args, **kwargs)

    json.dumps = faster  # type: ignore[assignment]


def facts_of(embedded: Embedded) -> dict[str, Any]:
    """Return the fields of an answer that describe its vectors."""
    shape, token_counts = list(embedded.vectors.shape), embedded.token_counts
    facts = {"shape": shape, "token_counts": token_counts}
    facts |= {"truncated": embedded.truncated, "prompted": embedded.prompted}
    return facts if embedded.chunks is None else facts | {"chunks": embedded.chunks}


@functools.cache
def default_of(name: str) -> object:
    """Return the default of an input of `Predictor.run`."""
    default = inspect.signature(Predictor.run).parameters[name].default
    return getattr(default, "default", default)  # Cog's server puts the value where Input(...) stands


def check_unset(reason: str, **inputs: object) -> None:
    """Raise ValueError for an input that was set but would be ignored."""
    for name, value in inputs.items():
        if value and value != default_of(name):
            raise ValueError(f"{name}: {reason}; leave it out")


async def encoded(vectors: np.ndarray, output_format: str) -> str | np.ndarray:
    """Return the vectors as base64, or for `array` as an array, which is written as lists."""
    if output_format == "array":
        return np.ascontiguousarray(vectors)
    return cast(str, await run(NUMBERS, vectors.size, encoding.encode, vectors, output_format))


def check_form(output_format: str, options: Options) -> None:
    """Raise ValueError where a list of vectors alone would not say which text each belongs to."""
    if output_format == "vectors" and options.chunking:
        raise ValueError("output_format: 'vectors' does not say which text a chunk is from; with 'chunk' use 'array'")


class Predictor(BaseRunner):
    def setup(self) -> None:
        """Load the checkpoint that WEIGHTS names and prove it right. Raises an error of one sentence if it cannot."""
        logs.of_worker()
        logger.info(NAMED)
        let_orjson_write_vectors()
        self.files, self.tells_cost = InputFiles(), access.tells_cache_hits()
        check_settings()  # reports a wrong setting before the first file
        self.service = Service(settings.text("WEIGHTS"))
        if port := settings.port("API_PORT", 0):
            from api.server import ApiServer  # takes half a second, and most containers do not need it

            self.apis = ApiServer(self.service, settings.text("API_HOST") or "0.0.0.0", port)
        self.service.start()
        gc.freeze()  # keeps the garbage collector from scanning the model and its libraries again
        self.folders = PredictionFolders()
        self.folders.remove_in_background()
        # A signal to the whole process group reaches this process too, but Cog's server decides when it ends.
        signal.signal(signal.SIGTERM, lambda *_: None)

    async def healthcheck(self) -> bool:
        """Return whether the engine still computes what it did at setup, and predictions have room on disk."""
        return await self.service.healthy() and await self.folders.healthy()

    @cog.concurrent(max=256)
    async def run(
        self,
        text: str | None = Input(description="A text to embed. Give one of text, texts and file.", default=None),
        texts: list[str] | str | None = Input(
            description="Up to 2,048 texts to embed in one call: a list of strings, or such a list as a JSON string.",
            default=None,
        ),
        task: str | None = Input(
            description="What the vectors are for; chooses the prompt. Without it, retrieval_document.",
            default=None,
            choices=[
                "retrieval_document",
                "retrieval_query",
                "classification",
                "clustering",
                "semantic_similarity",
                "question_answering",
                "fact_verification",
                "code_retrieval",
                "summarization",
                "none",
            ],
        ),
        title: str | None = Input(
            description="The document's title. Needs text, and the task retrieval_document.", default=None
        ),
        titles: list[str] | None = Input(description="The documents' titles, one for each of texts.", default=None),
        embedding_dim: int = Input(
            description="Vector size: keep the first N components, then renormalise.",
            default=768,
            choices=[768, 512, 256, 128],
        ),
        normalize: bool = Input(description="Scale each vector to length 1 after the cut.", default=True),
        output_format: str = Input(
            description="base64 (of the bytes), array (lists of numbers), or vectors (lists, without other fields).",
            default="base64",
            choices=["base64", "array", "vectors"],
        ),
        precision: str = Input(
            description="Number format of the vectors; binary and ubinary pack eight signs into a byte.",
            default="float32",
            choices=["float32", "float16", "int8", "uint8", "binary", "ubinary"],
        ),
        truncate: str = Input(
            description="Which end to cut from a text beyond the model's limit of tokens; none refuses such a text.",
            default="end",
            choices=["end", "start", "none"],
        ),
        chunk: int | None = Input(
            description="Chunk size in tokens: cut longer texts into chunks, each with its own vector.", default=None
        ),
        overlap: int = Input(description="How many tokens of a chunk the next chunk repeats.", default=0),
        late_chunking: bool = Input(
            description="Late chunking: encode neighbouring chunks together, up to the model's limit at once.",
            default=False,
        ),
        file: Path | None = Input(
            description="A file of texts, instead of text or texts; the answer is a file of vectors.", default=None
        ),
        file_format: str = Input(
            description="The file's format; auto goes by the end of its name.",
            default="auto",
            choices=["auto", "txt", "jsonl", "csv", "parquet", "arrow"],
        ),
        output_file: str = Input(
            description="The format of the file of vectors.", default="parquet", choices=["parquet", "jsonl", "npy"]
        ),
        text_column: str = Input(description="The file's column of texts.", default="text"),
        title_column: str | None = Input(description="The file's column of titles.", default=None),
        id_column: str | None = Input(
            description="The file's column of ids, copied to the answer. Without it, rows are numbered.", default=None
        ),
        on_error: str = Input(
            description="What to do at a row of the file that cannot be embedded: stop, or skip it.",
            default="stop",
            choices=["stop", "skip"],
        ),
    ) -> Any:
        """Embed a text, many, or a file of texts. Raises ValueError naming the field, its problem and the remedy."""
        started = time.perf_counter()
        with self.folders.in_use() as folder:
            # Cog's server accepts JSON's 256.0 as a whole number, and passes it on as a float.
            chunking = chunking_of(None if chunk is None else int(chunk), int(overlap), late_chunking)
            options = Options(task, int(embedding_dim), normalize, precision, cast(Truncate, truncate), chunking)
            if file is not None:
                check_beside_file(text=text, texts=texts, title=title, titles=titles)
                check_unset("the answer to a file is a file, as 'output_file' says", output_format=output_format)
                columns, skip = Columns(text_column, title_column or None, id_column or None), on_error == "skip"
                return await self.embed_file(InputFile(file, file_format, columns, skip, output_file), options, folder)
            check_unset("it needs 'file'", text_column=text_column, title_column=title_column, id_column=id_column)
            check_unset("it needs 'file'", file_format=file_format, output_file=output_file, on_error=on_error)
            check_form(output_format, options)
            request = read_texts(text, texts, title, titles)
            embedded = await self.service.embed(request, options)
            keep_answer(folder, embedded.vectors.size)
            self.report(request, embedded, truncate)
            if output_format == "vectors":
                self.record_metric("model", self.service.model)
                return np.ascontiguousarray(embedded.vectors).view(PlainNumbers)
            embedding = await encoded(embedded.vectors, output_format)
        answer = PlainJson(embedding=embedding, output_format=output_format, precision=precision, **facts_of(embedded))
        answer |= {"model": self.service.model, "processing_time_ms": round((time.perf_counter() - started) * 1000, 3)}
        return answer

    async def embed_file(self, source: InputFile, options: Options, folder: Path) -> Path:
        """Fetch the file of a prediction and return its answer, in `folder`. Raises FileRefused, CorpusError."""
        # The first file imports what reads files, in a thread, as it takes a fifth of a second.
        await asyncio.to_thread(importlib.import_module, "corpus.prediction")
        from corpus.prediction import embed_file

        self.service.check(options)
        tokenizer, model = self.service.engine.tokenizer, self.service.model
        async with self.files.fetched(str(source.path), folder) as fetched:
            path = Path(tempfile.mkdtemp(dir=folder)) / f"vectors.{source.output_format}"
            source = replace(source, path=fetched)
            written = await embed_file(source, path, options, tokenizer, self.service.batcher.embed, model)
        logger.info(NAMED)
        logger.info("%d rows, %d skipped, %d tokens, by %s", written.rows, written.skipped, written.tokens, model)
        facts = {"rows": written.rows, "skipped": written.skipped, "token_count": written.tokens}
        for metric, value in (facts | {"prompted": written.prompted, "model": model}).items():
            self.record_metric(metric, value)
        return Path(path)

    def report(self, request: Texts, embedded: Embedded, truncate: str) -> None:
        """Log the texts that were cut, and record what the prediction cost."""
        if embedded.truncated or embedded.prompted:  # a line costs a short prediction some percent
            logger.info(NAMED)
        if cut := embedded.truncated:
            names = ", ".join(request.name(embedded.owners[vector]) for vector in cut[:CUT_LOGGED])
            more = f" and {len(cut) - CUT_LOGGED} more" if len(cut) > CUT_LOGGED else ""
            logger.warning("cut at the %s to %d tokens: %s%s", truncate, embedded.token_counts[cut[0]], names, more)
        if embedded.prompted:
            logger.info("texts that began with a prompt, and got no second one: %d", len(embedded.prompted))
        if self.tells_cost:  # the cost reveals whether the vectors came from the cache
            for metric, value in embedded.cost._asdict().items():
                self.record_metric(metric, round(value, 3))
        self.record_metric("token_count", embedded.tokens)
        self.record_metric("truncated", len(embedded.truncated))
        self.record_metric("prompted", len(embedded.prompted))


# Seeing a string here, Cog passes on the URL; it would fetch a Path itself, from any address and without limits. The
# schema, which is read from the source, still says URI.
Predictor.run.__annotations__["file"] = str | None
