"""Cog's door: inputs are checked here, handed on, and come back as one prediction."""

import asyncio
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict, cast

import cog
import numpy as np
from cog import BaseRunner, Input

import encoding
import engine
import selfcheck
import weights
from engine.tokenizer import TextRefused, Truncate
from tasks import prompt_for

logger = logging.getLogger(__name__)

MAX_TEXTS = 2048


class Output(TypedDict):
    """One prediction. `embedding` is a base64 string, or a (nested) list of numbers for output_format `array`."""

    embedding: Any
    output_format: str
    shape: list[int]
    processing_time_ms: float
    precision: str
    token_counts: list[int]
    truncated: list[int]
    model: str


class PlainJson(dict[str, Any]):
    """A dict that Cog hands to `json.dumps` as it is: a plain one is walked, ten calls for every float in it."""


class Predictor(BaseRunner):
    def setup(self) -> None:
        """Load the checkpoint that WEIGHTS names and prove it right. Raises in one sentence when it cannot be used."""
        logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
        for one in (logger, weights.logger):
            one.setLevel(logging.INFO)
        started = time.perf_counter()
        checkpoint = weights.resolve(os.environ.get("WEIGHTS"))
        logger.info("loading %s from %s, SHA-256 %s", checkpoint.name, checkpoint.source, checkpoint.sha256)
        self.model_name = checkpoint.name
        self.engine = engine.load(checkpoint.directory)
        checked = time.perf_counter()
        found = selfcheck.check(self.engine, checkpoint.directory, checkpoint.canaries)
        logger.info("self-check in %.2f s: %s", time.perf_counter() - checked, found)
        # An engine belongs to one thread: requests wait for it here, not in the event loop.
        self.engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        seconds = time.perf_counter() - started
        logger.info("%s ready in %.1f s: %s", checkpoint.name, seconds, self.engine.description)

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
    ) -> Output:
        """Embed one text or many. Raises ValueError naming the field, its problem and the remedy."""
        started = time.perf_counter()
        all_texts, prompts = check(text, texts, task, title, titles)
        # Tokens and answers are made in threads of their own, so that no request holds up the others' event loop.
        try:
            tokenized = await asyncio.to_thread(
                self.engine.tokenizer.encode, prompts, all_texts, cast(Truncate, truncate)
            )
        except TextRefused as refused:
            field = ("titles" if text is None else "title") if refused.is_prompt else None
            raise ValueError(f"{place(text, refused.position, field)}: {refused.reason}") from None
        token_ids = [one.ids for one in tokenized]
        loop = asyncio.get_running_loop()
        vectors = await loop.run_in_executor(self.engine_thread, self.engine.embed, token_ids)
        if text is not None:
            vectors = vectors[0]
        shape, embedding = await asyncio.to_thread(to_wire, vectors, embedding_dim, normalize, precision, output_format)
        truncated = [i for i, one in enumerate(tokenized) if one.truncated]
        for i in truncated:
            logger.warning("%s cut at its %s to %d tokens", place(text, i), truncate, len(token_ids[i]))
        output = PlainJson(
            embedding=embedding,
            output_format=output_format,
            shape=shape,
            processing_time_ms=round((time.perf_counter() - started) * 1000, 3),
            precision=precision,
            token_counts=[len(ids) for ids in token_ids],
            truncated=truncated,
            model=self.model_name,
        )
        return cast(Output, output)


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


def check(
    text: str | None, texts: list[str] | None, task: str, title: str | None, titles: list[str] | None
) -> tuple[list[str], list[str]]:
    """Return the texts to embed and the prompt of each. Raises ValueError for what the schema cannot refuse."""
    if (text is None) == (texts is None):
        problem = "neither was given" if text is None else "both were given"
        raise ValueError(f"text, texts: {problem}; give one text in 'text', or several in 'texts'")
    all_texts = [text] if text is not None else texts or []
    if not 1 <= len(all_texts) <= MAX_TEXTS:
        raise ValueError(
            f"texts: {len(all_texts):,} texts were given; give 1 to {MAX_TEXTS:,}, the rest in further calls"
        )
    for i, one in enumerate(all_texts):
        check_string(one, place(text, i))
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
        check_string(one, place(text, i, name))
    return [one if one.strip() else None for one in all_titles]


def check_string(value: str, where: str) -> None:
    """Raise ValueError for a lone surrogate, half of a UTF-16 pair, which no encoding can spell."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{where}: character {error.start} is a lone surrogate (U+{ord(value[error.start]):04X}), not a character; "
            "send whole UTF-16 pairs or UTF-8"
        ) from None
