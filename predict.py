"""Cog's door: inputs are checked here, handed on, and come back as one prediction."""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NotRequired, ParamSpec, TypedDict, TypeVar, cast

import cog
import numpy as np
from cog import BaseRunner, Input, Path

import batching.batcher
import corpus.prediction
import encoding
import engine
import selfcheck
import weights
from batching.batcher import Batcher
from batching.errors import EngineFailed
from batching.health import Health
from corpus.pipeline import Settings
from corpus.prediction import Source, embed_file
from corpus.rows import Columns, check_unicode
from engine.contract import Ranges
from engine.threads import in_own_thread
from engine.tokenizer import TextRefused, Truncate
from prediction_folders import PredictionFolders
from tasks import prompt_for
from texts.chunking import Chunking, Pass, passes, uncut

logger = logging.getLogger(__name__)

MAX_TEXTS = 2048
MAX_CHUNKS = 8192
# Fewer tokens from one chunk to the next would make of a file more vectors than memory holds.
MIN_CHUNK_STEP = 16

# Work for so few characters or vectors takes less time than handing it to another thread.
CHARACTERS_ON_LOOP = 2_000
VECTORS_ON_LOOP = 8

# Without MAX_WAITING_TOKENS: seconds of work for a GPU, and on it room for the largest request there can be.
MAX_WAITING_BATCHES = 256
CACHE_MB = 64

Args = ParamSpec("Args")
Result = TypeVar("Result")


class Output(TypedDict):
    """One prediction. `embedding` is a base64 string, or a (nested) list of numbers for output_format `array`.

    With `chunk` it has a row for each chunk, and `chunks` says of which text and characters: [text, start, end]. A
    prediction of a file has `file` in place of embedding, shape, token_counts and truncated.
    """

    embedding: NotRequired[Any]
    output_format: NotRequired[str]
    shape: NotRequired[list[int]]
    token_counts: NotRequired[list[int]]
    truncated: NotRequired[list[int]]
    chunks: NotRequired[list[list[int]]]
    file: NotRequired[Path]
    rows: NotRequired[int]
    skipped: NotRequired[int]
    processing_time_ms: float
    precision: str
    model: str


class PlainJson(dict[str, Any]):
    """A dict that Cog hands to `json.dumps` as it is: a plain one is walked, ten calls for every float in it."""


class Predictor(BaseRunner):
    def setup(self) -> None:
        """Load the checkpoint that WEIGHTS names and prove it right. Raises in one sentence when it cannot be used."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        for one in (
            logger,
            weights.logger,
            logging.getLogger("fetching"),
            batching.batcher.logger,
            corpus.prediction.logger,
        ):
            one.setLevel(logging.INFO)
        started = time.perf_counter()
        checkpoint = weights.resolve(os.environ.get("WEIGHTS"))
        logger.info("loading %s from %s, SHA-256 %s", checkpoint.name, checkpoint.source, checkpoint.sha256)
        self.model_name = checkpoint.name
        self.engine = engine.load(checkpoint.directory)
        checked = time.perf_counter()
        found = in_own_thread(lambda: selfcheck.check(self.engine, checkpoint.directory, checkpoint.canaries))
        logger.info("self-check in %.2f s: %s", time.perf_counter() - checked, found)
        canary = self.engine.tokenizer.encode([prompt_for("none")], ["Is the canary still singing?"])[0].ids
        vector = in_own_thread(lambda: self.engine.embed([canary])[0])
        max_waiting_tokens = setting("MAX_WAITING_TOKENS", MAX_WAITING_BATCHES * self.engine.batch_tokens)
        self.batcher = Batcher(self.engine, max_waiting_tokens, setting("CACHE_MB", CACHE_MB) << 20)
        self.health = Health(self.batcher, canary, vector, selfcheck.allowed_error(self.engine))
        self.leftovers = PredictionFolders()
        seconds = time.perf_counter() - started
        logger.info("%s ready in %.1f s: %s", checkpoint.name, seconds, self.engine.description)

    async def healthcheck(self) -> bool:
        """Return whether the engine still computes, and computes the vectors that it did at setup."""
        return await self.health.check()

    @cog.concurrent(max=256)
    async def run(
        self,
        text: str | None = Input(description="One text to embed. Give either this or texts.", default=None),
        texts: list[str] | None = Input(description="1 to 2,048 texts to embed in one call.", default=None),
        task: str = Input(
            description="What the vectors are for: chooses the prompt that the model was trained with.",
            default="retrieval_document",
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
            description="base64 of the array's bytes (little-endian), or array: lists of numbers.",
            default="base64",
            choices=["base64", "array"],
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
    ) -> Output:
        """Embed one text, many, or a file of them. Raises ValueError naming the field, its problem and the remedy."""
        started = time.perf_counter()
        chunking = check_chunking(chunk, overlap, late_chunking, self.engine.pools_ranges)
        if file is not None:
            check_file(file, {"text": text, "texts": texts, "title": title, "titles": titles})
            check_rows(output_file, chunking, on_error)
            settings = Settings(task, embedding_dim, normalize, precision, cast(Truncate, truncate), chunking)
            columns = Columns(text_column, title_column or None, id_column or None)
            source = Source(file, None if file_format == "auto" else file_format, columns, on_error == "skip")
            return await self.embed_file(source, settings, output_file, started)
        all_texts, prompts = check(text, texts, task, title, titles)
        with self.leftovers.in_use():
            all_passes = await self.tokenize(prompts, all_texts, cast(Truncate, truncate), chunking, text)
            read = [one for passes in all_passes for one in passes]
            owners = [i for i, passes in enumerate(all_passes) for _ in passes]
            ranges = [[(span.first, span.last) for span in one.spans] for one in read] if late_chunking else None
            try:
                vectors, cost = await self.batcher.embed([one.ids for one in read], ranges)
            except EngineFailed as failed:
                raise RuntimeError(f"{place(text, owners[failed.position])}: {failed}") from None
            if text is not None and chunking is None:
                vectors = vectors[0]
            shape, embedding = await aside(
                vectors.size > VECTORS_ON_LOOP * 768,
                to_wire,
                vectors,
                embedding_dim,
                normalize,
                precision,
                output_format,
            )
        spans = [(owner, one, span) for owner, one in zip(owners, read, strict=True) for span in one.spans]
        truncated = [i for i, (_, one, _) in enumerate(spans) if one.truncated]
        token_counts = [span.last - span.first for *_, span in spans]
        for i in truncated:
            logger.warning("%s cut at its %s to %d tokens", place(text, spans[i][0]), truncate, token_counts[i])
        for name, value in cost._asdict().items():
            self.record_metric(name, round(value, 3))
        self.record_metric("token_count", sum(token_counts))
        output = PlainJson(
            embedding=embedding,
            output_format=output_format,
            shape=shape,
            processing_time_ms=round((time.perf_counter() - started) * 1000, 3),
            precision=precision,
            token_counts=token_counts,
            truncated=truncated,
            model=self.model_name,
        )
        if chunking is not None:
            output["chunks"] = [[owner, span.start, span.end] for owner, _, span in spans]
        return cast(Output, output)

    async def embed_file(self, source: Source, settings: Settings, output_file: str, started: float) -> Output:
        """Return the answer to a prediction of a file. Raises CorpusError naming the line and the remedy."""

        async def embed(token_ids: Sequence[Sequence[int]], ranges: Ranges | None) -> np.ndarray:
            return (await self.batcher.embed(token_ids, ranges))[0]

        with self.leftovers.in_use():
            output = self.leftovers.make() / f"vectors.{output_file}"
            done = await embed_file(source, output, settings, self.engine.tokenizer, embed, self.model_name)
        self.record_metric("token_count", done.tokens)
        return Output(
            file=Path(output),
            rows=done.rows,
            skipped=done.skipped,
            processing_time_ms=round((time.perf_counter() - started) * 1000, 3),
            precision=settings.precision,
            model=self.model_name,
        )

    async def tokenize(
        self, prompts: list[str], all_texts: list[str], truncate: Truncate, chunking: Chunking | None, text: str | None
    ) -> list[list[Pass]]:
        """Return what the model reads of each text. Raises ValueError naming the field that cannot be tokenized."""

        def work() -> list[list[Pass]]:
            if chunking is not None:
                return passes(self.engine.tokenizer, prompts, all_texts, chunking, MAX_CHUNKS)
            tokenized = self.engine.tokenizer.encode(prompts, all_texts, truncate)
            return [[uncut(one, len(whole))] for one, whole in zip(tokenized, all_texts, strict=True)]

        try:
            return await aside(sum(map(len, all_texts)) > CHARACTERS_ON_LOOP, work)
        except TextRefused as refused:
            field = ("titles" if text is None else "title") if refused.is_prompt else None
            raise ValueError(f"{place(text, refused.position, field)}: {refused.reason}") from None


async def aside(large: bool, work: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
    """Return work(*args): if it is `large` from another thread, so that no request holds up the others."""
    if large:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)


def setting(name: str, default: int) -> int:
    """Return the environment variable as a whole number, the default if it is not set. Raises ValueError."""
    value = os.environ.get(name) or str(default)
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{name} is {value!r}; set it to a whole number, or leave it unset for {default:,}")
    return int(value)


def to_wire(
    vectors: np.ndarray, embedding_dim: int, normalize: bool, precision: str, output_format: str
) -> tuple[list[int], str | list[Any]]:
    """Return the shape and the embedding of an answer, from float32 [768] or [n, 768]."""
    array = encoding.convert(encoding.cut(vectors, embedding_dim, normalize), precision)
    return list(array.shape), encoding.encode(array, output_format)


def place(text: str | None, position: int, field: str | None = None) -> str:
    """Return how an error names a text (or `field`): `text` alone, `texts[3]` among many."""
    if text is not None:
        return field or "text"
    return f"{field or 'texts'}[{position}]"


def check_chunking(chunk: int | None, overlap: int, late: bool, pools_ranges: bool) -> Chunking | None:
    """Return how long texts are cut, None where they are not. Raises ValueError for what does not go together."""
    if chunk is None:
        if overlap or late:
            raise ValueError(
                f"{'overlap' if overlap else 'late_chunking'}: it needs 'chunk'; give the tokens of a chunk"
            )
        return None
    if late and not pools_ranges:
        raise ValueError("late_chunking: ENGINE=reference has none; leave it out, or use ENGINE=packed")
    chunking = Chunking(chunk, overlap, late)
    if chunk - overlap < MIN_CHUNK_STEP:
        raise ValueError(
            f"chunk, overlap: a chunk would begin every {chunk - overlap} tokens; make chunk at least {MIN_CHUNK_STEP} "
            "more than overlap"
        )
    return chunking


def check_file(file: Path | str, others: dict[str, object]) -> None:
    """Raise ValueError for a file that is no download, and for what is given beside it."""
    if given := [name for name, value in others.items() if value is not None]:
        raise ValueError(f"file, {', '.join(given)}: give a file, whose columns have texts and titles, or give texts")
    if not isinstance(file, os.PathLike):  # Cog hands on what it did not download: never a path of this machine
        raise ValueError(f"file: {file[:80]!r} is no URL; give one that begins with http://, https:// or data:")


def check_rows(output_file: str, chunking: Chunking | None, on_error: str) -> None:
    """Raise ValueError where a file of nothing but vectors would not tell which is which."""
    other = "chunk" if chunking is not None else "on_error 'skip'" if on_error == "skip" else None
    if output_file == "npy" and other:
        raise ValueError(f"output_file: 'npy' has no ids to tell rows by, with {other}; use 'parquet' or 'jsonl'")


def check(
    text: str | None, texts: list[str] | None, task: str, title: str | None, titles: list[str] | None
) -> tuple[list[str], list[str]]:
    """Return the texts to embed and the prompt of each. Raises ValueError for what the schema cannot refuse."""
    if (text is None) == (texts is None):
        problem = "neither was given" if text is None else "both were given"
        raise ValueError(f"text, texts: {problem}; give one text in 'text', several in 'texts', or a 'file'")
    all_texts = [text] if text is not None else texts or []
    if not 1 <= len(all_texts) <= MAX_TEXTS:
        raise ValueError(
            f"texts: {len(all_texts):,} texts were given; give 1 to {MAX_TEXTS:,}, the rest in further calls"
        )
    for i, one in enumerate(all_texts):
        check_unicode(one, place(text, i))
        if not one or one.isspace():
            raise ValueError(
                f"{place(text, i)}: the text is empty or blank, which has no meaning to embed; leave it out"
            )
    return all_texts, [prompt_for(task, one) for one in check_titles(text, len(all_texts), task, title, titles)]


def check_titles(
    text: str | None, count: int, task: str, title: str | None, titles: list[str] | None
) -> list[str | None]:
    """Return the title of each of `count` texts, None where it has none (a blank title is none)."""
    given = titles if titles is not None else title
    if given is None:
        return [None] * count
    name = "titles" if titles is not None else "title"
    if title is not None and titles is not None:
        raise ValueError("title, titles: both were given; give 'title' with 'text', or 'titles' with 'texts'")
    if task != "retrieval_document":
        raise ValueError(
            f"{name}: task '{task}' has no place for a title; leave it out or use task 'retrieval_document'"
        )
    if (title is not None) != (text is not None):
        raise ValueError(f"{name}: give 'title' with 'text', or 'titles' with 'texts'")
    all_titles = [title] if title is not None else titles or []
    if len(all_titles) != count:
        raise ValueError(
            f"titles: {len(all_titles):,} titles for {count:,} texts; give one for each, '' where there is none"
        )
    for i, one in enumerate(all_titles):
        check_unicode(one, place(text, i, name))
    return [one if one.strip() else None for one in all_titles]
