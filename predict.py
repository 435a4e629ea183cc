"""Cog's door: the inputs of a prediction go to the service, its vectors come back as the answer."""

import functools
import gc
import inspect
import logging
import signal
import tempfile
import time
from typing import Any, NotRequired, TypedDict, cast

import cog
import numpy as np
from cog import BaseRunner, Input, Path

import encoding
import settings
from corpus.prediction import Source, check_beside_file, embed_file
from corpus.rows import Columns
from engine.tokenizer import Truncate
from prediction_folders import PredictionFolders
from service import NUMBERS_ON_LOOP, Embedded, Service, off_loop
from texts.options import Options, chunking_of
from texts.request import Texts, read_texts

logger = logging.getLogger(__name__)

# Loggers of rooms; the loggers of their files inherit the level.
LOGGED = (__name__, "api", "settings", "service", "engine", "fetching", "batching", "corpus")


class Output(TypedDict):
    """The answer to texts. `embedding` is a base64 string, or a (nested) list of numbers for output_format `array`.

    With `chunk` it has a row for each chunk, and `chunks` says of which text and characters: [text, start, end]. For
    output_format `vectors` the answer is the list alone, and for `file` the path of a file of vectors.
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
    """A dict that Cog hands to `json.dumps` as it is: a plain one is walked, ten calls for every float in it."""


class PlainList(list[Any]):
    """A list that Cog does not walk where it comes from an array."""


class PlainNumbers(np.ndarray):
    """An array that Cog turns into a list with `tolist` and hands to `json.dumps` as that is."""

    def tolist(self) -> PlainList:
        """Return the numbers, in a list for each dimension."""
        return PlainList(super().tolist())


def facts_of(embedded: Embedded) -> dict[str, Any]:
    """Return what an answer says of its vectors."""
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
    """Raise ValueError for an input that would be ignored, as it has another value than its default."""
    for name, value in inputs.items():
        if value and value != default_of(name):
            raise ValueError(f"{name}: {reason}; leave it out")


def check_form(output_format: str, options: Options) -> None:
    """Raise ValueError for vectors alone that would not say whose they are."""
    if output_format == "vectors" and options.chunking:
        raise ValueError("output_format: 'vectors' does not say what a chunk is of; with 'chunk' use 'array'")


class Predictor(BaseRunner):
    def setup(self) -> None:
        """Load the checkpoint that WEIGHTS names and prove it right. Raises in one sentence when it cannot be used."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        for name in LOGGED:
            logging.getLogger(name).setLevel(logging.INFO)
        self.service = Service(settings.text("WEIGHTS"))
        if port := settings.port("API_PORT", 0):
            from api.server import Doors  # takes half a second, and most containers do without

            self.doors = Doors(self.service, settings.text("API_HOST") or "0.0.0.0", port)
        self.service.start()
        gc.freeze()  # the garbage collector need not look through the model and its libraries again
        self.folders = PredictionFolders()
        # A signal to the whole process group reaches this process, too. Cog's server says when it may end.
        signal.signal(signal.SIGTERM, lambda *_: None)

    async def healthcheck(self) -> bool:
        """Return whether the engine still computes, and computes the vectors that it did at setup."""
        return await self.service.healthy()

    @cog.concurrent(max=256)
    async def run(
        self,
        text: str | None = Input(description="One text to embed. Give either this or texts.", default=None),
        texts: list[str] | str | None = Input(
            description="1 to 2,048 texts to embed in one call: a list, or a JSON string of one.", default=None
        ),
        task: str | None = Input(
            description="What the vectors are for: chooses the prompt. Without it, retrieval_document.",
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
            description="The document's title, with text and task retrieval_document.", default=None
        ),
        titles: list[str] | None = Input(description="The documents' titles, as many as texts.", default=None),
        embedding_dim: int = Input(
            description="Matryoshka dimensions: the first so many components, renormalised.",
            default=768,
            choices=[768, 512, 256, 128],
        ),
        normalize: bool = Input(description="Scale each vector to length 1 after the cut.", default=True),
        output_format: str = Input(
            description="base64 of the bytes, array (lists of numbers), or vectors: the lists and nothing beside them.",
            default="base64",
            choices=["base64", "array", "vectors"],
        ),
        precision: str = Input(
            description="Number format of the vectors; binary and ubinary pack eight signs to a byte.",
            default="float32",
            choices=["float32", "float16", "int8", "uint8", "binary", "ubinary"],
        ),
        truncate: str = Input(
            description="Which end of a text beyond 2,048 tokens is cut; none refuses such a text.",
            default="end",
            choices=["end", "start", "none"],
        ),
        chunk: int | None = Input(
            description="Cut longer texts into chunks of so many tokens, each with a vector of its own.", default=None
        ),
        overlap: int = Input(description="Tokens of a chunk that are in the next one, too.", default=0),
        late_chunking: bool = Input(
            description="Let chunks be read in the company of the others, up to 2,048 tokens at once.", default=False
        ),
        file: Path | None = Input(
            description="A file of texts, in place of text and texts; the answer is a file of vectors.", default=None
        ),
        file_format: str = Input(
            description="What the file is; auto goes by the end of its name.",
            default="auto",
            choices=["auto", "txt", "jsonl", "csv", "parquet"],
        ),
        output_file: str = Input(
            description="What the file of vectors is to be.", default="parquet", choices=["parquet", "jsonl", "npy"]
        ),
        text_column: str = Input(description="The file's column of texts.", default="text"),
        title_column: str | None = Input(description="The file's column of titles.", default=None),
        id_column: str | None = Input(
            description="The file's column of ids, copied to the answer; rows are numbered without.", default=None
        ),
        on_error: str = Input(
            description="At a row of the file that cannot be embedded: stop, or skip it.",
            default="stop",
            choices=["stop", "skip"],
        ),
    ) -> Any:
        """Embed one text, many, or a file of them. Raises ValueError naming the field, its problem and the remedy."""
        started = time.perf_counter()
        with self.folders.in_use() as folder:
            # JSON's 256.0 is a whole number to Cog's server, and comes as a float.
            chunking = chunking_of(None if chunk is None else int(chunk), int(overlap), late_chunking)
            options = Options(task, int(embedding_dim), normalize, precision, cast(Truncate, truncate), chunking)
            if file is not None:
                check_beside_file(text=text, texts=texts, title=title, titles=titles)
                check_unset("the answer to a file is a file, as 'output_file' says", output_format=output_format)
                columns, skip = Columns(text_column, title_column or None, id_column or None), on_error == "skip"
                return await self.embed_file(Source(file, file_format, columns, skip, output_file), options, folder)
            check_unset("it needs 'file'", text_column=text_column, title_column=title_column, id_column=id_column)
            check_unset("it needs 'file'", file_format=file_format, output_file=output_file, on_error=on_error)
            check_form(output_format, options)
            request = read_texts(text, texts, title, titles, task)
            embedded = await self.service.embed(request, options)
            self.report(request, embedded, truncate)
            if output_format == "vectors":
                self.record_metric("model", self.service.model)
                return embedded.vectors.view(PlainNumbers)
            is_large = embedded.vectors.size > NUMBERS_ON_LOOP
            embedding = await off_loop(is_large, encoding.encode, embedded.vectors, output_format)
        answer = PlainJson(embedding=embedding, output_format=output_format, precision=precision, **facts_of(embedded))
        answer |= {"model": self.service.model, "processing_time_ms": round((time.perf_counter() - started) * 1000, 3)}
        return answer

    async def embed_file(self, source: Source, options: Options, folder: Path) -> Path:
        """Return the answer to a prediction of a file, in `folder`. Raises CorpusError naming line and remedy."""
        self.service.check(options)
        path = Path(tempfile.mkdtemp(dir=folder)) / f"vectors.{source.output_format}"
        tokenizer, model = self.service.engine.tokenizer, self.service.model
        written = await embed_file(source, path, options, tokenizer, self.service.batcher.embed, model)
        logger.info("%d rows, %d skipped, %d tokens, by %s", written.rows, written.skipped, written.tokens, model)
        facts = {"rows": written.rows, "skipped": written.skipped, "token_count": written.tokens}
        for metric, value in (facts | {"prompted": written.prompted, "model": model}).items():
            self.record_metric(metric, value)
        return Path(path)

    def report(self, request: Texts, embedded: Embedded, truncate: str) -> None:
        """Log the texts that were cut, and record what the prediction cost."""
        for vector in embedded.truncated:
            name, tokens = request.name(embedded.owners[vector]), embedded.token_counts[vector]
            logger.warning("%s cut at its %s to %d tokens", name, truncate, tokens)
        if embedded.prompted:
            logger.info("texts that began with a prompt, and got no second one: %d", len(embedded.prompted))
        for metric, value in embedded.cost._asdict().items():
            self.record_metric(metric, round(value, 3))
        self.record_metric("token_count", sum(embedded.token_counts))
        self.record_metric("truncated", len(embedded.truncated))
        self.record_metric("prompted", len(embedded.prompted))
