"""From texts and options to what the model reads, and which vector belongs to which part of which text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from engine.contract import Ranges, TokenIds
from engine.pieces import PIECE_TEXTS, Pieces, all_of, pieces_of
from engine.tokenizer import TextRefused, Tokenizer
from texts.chunking import Pass, Span, cut_in_pieces
from texts.limits import NO_LIMITS, Limits
from texts.options import Options
from texts.prompts import split_prompt
from texts.request import TEXT_CHARS


@dataclass(frozen=True)
class Prepared:
    """Token ids for the engine, and facts about each vector that it will return.

    A pass is what the model reads at once: a text, a chunk or, with late chunking, several chunks. It gives a vector
    for each of its spans.
    """

    passes: list[Pass]
    owners: list[int]
    """The position of each vector's text, ascending."""
    late_chunking: bool

    @cached_property
    def token_ids(self) -> list[TokenIds]:
        """The token ids of each pass."""
        return [each.ids for each in self.passes]

    @cached_property
    def ranges(self) -> Ranges | None:
        """With late chunking, the tokens of each vector of each pass; None where a pass gives a single vector."""
        if not self.late_chunking:
            return None
        return [[(span.first, span.last) for span in each.spans] for each in self.passes]

    @cached_property
    def spans(self) -> list[Span]:
        """For each vector, the characters of its text and the tokens of its pass."""
        return [span for each in self.passes for span in each.spans]

    @cached_property
    def pass_texts(self) -> list[int]:
        """The position of each pass's text, of its first where it has several, ascending."""
        return [self.owners[first] for first in accumulate((len(each.spans) for each in self.passes[:-1]), initial=0)]

    @cached_property
    def token_counts(self) -> list[int]:
        """How many tokens each vector is the mean of."""
        return [span.last - span.first for span in self.spans]

    @cached_property
    def truncated(self) -> list[bool]:
        """For each vector, whether its text was cut to the limit."""
        return [each.truncated for each in self.passes for _ in each.spans]

    @cached_property
    def prompted(self) -> list[bool]:
        """For each vector, whether its text itself began with the prompt."""
        return [each.prompted for each in self.passes for _ in each.spans]


def characters_to_read(texts: Sequence[str], titles: Sequence[str | None], options: Options) -> int:
    """Return about how many characters are read to prepare the texts; overlaps and titles count each time."""
    characters = sum(map(len, texts)) + TEXT_CHARS * len(texts)
    title = sum(len(title) for title in titles if title)
    if options.chunking is None:
        return characters + title
    own_prompt = max((len(text) for text in texts if text.startswith("title: ")), default=0)
    repeated = options.chunking.overlap + title + own_prompt
    return characters + characters * repeated // (options.chunking.chunk - options.chunking.overlap)


def prepare(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    titles: Sequence[str | None],
    options: Options,
    limits: Limits = NO_LIMITS,
) -> Prepared:
    """Return what the model reads for checked texts: prompt and text, cut to the limit or into chunks.

    Thread-safe, and mostly outside the interpreter's lock. Raises TextRefused for a text that cannot be cut to the
    limit, or whose own prompt contradicts the options; TooManyTokens; ValueError for too many chunks.
    """
    return all_of(prepare_in_pieces(tokenizer, texts, titles, options, limits))


def prepare_in_pieces(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    titles: Sequence[str | None],
    options: Options,
    limits: Limits = NO_LIMITS,
) -> Pieces[Prepared]:
    """Do what `prepare` does, a piece at a time."""
    passes = yield from _passes_in_pieces(tokenizer, texts, titles, options, limits)
    yield
    return gather(enumerate(passes), options)


def gather(passes: Iterable[tuple[int, list[Pass]]], options: Options) -> Prepared:
    """Put together the passes of texts, each given with the text's position."""
    pairs = [(position, each) for position, its_passes in passes for each in its_passes]
    owners = [position for position, each in pairs for _ in each.spans]
    return Prepared([each for _, each in pairs], owners, options.late_chunking)


def passes_of(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    titles: Sequence[str | None],
    options: Options,
    limits: Limits = NO_LIMITS,
) -> list[list[Pass]]:
    """Return the passes of each text; see `prepare`."""
    return all_of(_passes_in_pieces(tokenizer, texts, titles, options, limits))


def _passes_in_pieces(
    tokenizer: Tokenizer, texts: Sequence[str], titles: Sequence[str | None], options: Options, limits: Limits
) -> Pieces[list[list[Pass]]]:
    prompts: list[str] = []
    rests: list[str] = []
    for position, (text, title) in enumerate(zip(texts, titles, strict=True)):
        prompt, rest = split_prompt(position, text, title, options, tokenizer.generation)
        prompts.append(prompt)
        rests.append(rest)
        if position and position % PIECE_TEXTS == 0:
            yield
    if options.chunking is not None:
        passes = yield from cut_in_pieces(tokenizer, prompts, rests, options.chunking, limits)
    else:
        passes = yield from _whole_texts(tokenizer, prompts, rests, options, limits)
    for its_passes, text, rest in zip(passes, texts, rests, strict=True):
        if rest is not text:
            its_passes[:] = [each.after(len(text) - len(rest)) for each in its_passes]
    return passes


def _whole_texts(
    tokenizer: Tokenizer, prompts: list[str], texts: list[str], options: Options, limits: Limits
) -> Pieces[list[list[Pass]]]:
    """Return a pass for each text, cut to the limit."""
    passes: list[list[Pass]] = []
    tokens = 0
    for piece in pieces_of([len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)]):
        if piece.start:
            yield
        part = slice(piece.start, piece.stop)
        try:
            tokenized = tokenizer.encode(prompts[part], texts[part], options.truncate, options.max_tokens)
        except TextRefused as refused:
            refused.position += piece.start
            raise
        passes += [[Pass.whole(result, 0, len(text))] for result, text in zip(tokenized, texts[part], strict=True)]
        tokens += sum(len(result.ids) for result in tokenized)
        limits.check_tokens(tokens, is_all=piece.stop == len(texts))
    return passes
