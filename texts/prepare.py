"""Texts and options to what the model reads, and which vector belongs to which part of which text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.contract import Ranges
from engine.tokenizer import Tokenizer
from texts.chunking import Pass, Span, cut_into_passes
from texts.options import Options
from texts.prompts import split_prompt


@dataclass(frozen=True, slots=True)
class Prepared:
    """Token ids for the engine, and what is known of each vector that will come of them.

    A pass is what the model reads at once: a text, a chunk or, with late chunking, several chunks. It gives a vector
    for each of its spans.
    """

    passes: list[Pass]
    pass_texts: list[int]
    """The position of each pass's text, ascending."""
    late_chunking: bool

    @property
    def token_ids(self) -> list[list[int]]:
        """What the engine reads, a list for each pass."""
        return [each.ids for each in self.passes]

    @property
    def ranges(self) -> Ranges | None:
        """With late chunking, the tokens of each vector of each pass; otherwise a pass gives one vector of all."""
        if not self.late_chunking:
            return None
        return [[(span.first, span.last) for span in each.spans] for each in self.passes]

    @property
    def spans(self) -> list[Span]:
        """What each vector is of: characters of its text and tokens of its pass."""
        return [span for each in self.passes for span in each.spans]

    @property
    def owners(self) -> list[int]:
        """The position of each vector's text, ascending."""
        return [text for text, each in zip(self.pass_texts, self.passes, strict=True) for _ in each.spans]

    @property
    def token_counts(self) -> list[int]:
        """Tokens that each vector is the mean over."""
        return [span.last - span.first for span in self.spans]

    @property
    def truncated(self) -> list[bool]:
        """Whether the limit cut some of the text off, for each vector."""
        return [each.truncated for each in self.passes for _ in each.spans]

    @property
    def prompted(self) -> list[bool]:
        """Whether the text began with its prompt itself, for each vector."""
        return [each.prompted for each in self.passes for _ in each.spans]


def prepare(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    titles: Sequence[str | None],
    options: Options,
    max_chunks: int | None = None,
) -> Prepared:
    """Return what the model reads of checked texts: the task's prompt before each, cut to the limit or into chunks.

    Thread-safe, and mostly outside the interpreter's lock. Raises TextRefused for a text that cannot be brought under
    the limit, or whose own prompt contradicts the options; ValueError for more than `max_chunks` chunks.
    """
    passes = passes_of(tokenizer, texts, titles, options, max_chunks)
    return gather(enumerate(passes), options)


def gather(passes: Iterable[tuple[int, list[Pass]]], options: Options) -> Prepared:
    """Put together the passes of texts, each given with the text's position."""
    pairs = [(position, each) for position, its_passes in passes for each in its_passes]
    return Prepared([each for _, each in pairs], [position for position, _ in pairs], options.late_chunking)


def passes_of(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    titles: Sequence[str | None],
    options: Options,
    max_chunks: int | None = None,
) -> list[list[Pass]]:
    """Return the passes of each text; see `prepare`."""
    split = [split_prompt(i, text, title, options) for i, (text, title) in enumerate(zip(texts, titles, strict=True))]
    prompts, rests = [prompt for prompt, _ in split], [rest for _, rest in split]
    if options.chunking is not None:
        passes = cut_into_passes(tokenizer, prompts, rests, options.chunking, max_chunks)
    else:
        tokenized = tokenizer.encode(prompts, rests, options.truncate, options.max_tokens)
        passes = [[Pass.whole(result, 0, len(rest))] for result, rest in zip(tokenized, rests, strict=True)]
    for its_passes, text, rest in zip(passes, texts, rests, strict=True):
        if rest is not text:
            its_passes[:] = [each.behind(len(text) - len(rest)) for each in its_passes]
    return passes
