"""Long texts cut into chunks of tokens, given as exact ranges of the text's characters."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter

from engine.contract import TokenIds
from engine.pieces import PIECE_TEXTS, Pieces, pieces_of
from engine.tokenizer import TextRefused, TokenizedText, Tokenizer
from texts.limits import NO_LIMITS, Limits

# With a smaller step between chunks, a request could make more vectors than memory holds.
MIN_CHUNK_STEP = 16
# A part cut out of a text seldom has more than this many tokens less than it had within the text.
CUT_TOKENS = 2

Chunk = tuple[int, int]
"""A range [first, last) of a text's tokens."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """How texts are cut: into chunks of `chunk` tokens, of which the next chunk repeats `overlap`.

    `late` is late chunking (arXiv 2409.04701): the model reads as many chunks as fit in one pass, and a chunk's vector
    is the mean over its own tokens of that pass. Raises ValueError for numbers that do not fit together.
    """

    chunk: int
    overlap: int = 0
    late: bool = False

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk: {self.chunk} tokens; give at least 1, or leave it out to cut no text into chunks")
        if not 0 <= self.overlap < self.chunk:
            raise ValueError(f"overlap: {self.overlap} tokens; give 0 to {self.chunk - 1}, fewer than chunk")


@dataclass(frozen=True, slots=True)
class Span:
    """One vector of a pass: characters [start, end) of the text, the mean over tokens [first, last) of the pass."""

    start: int
    end: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Pass:
    """What the model reads at once, and the spans that get a vector: all of it, or with late chunking each chunk."""

    ids: TokenIds
    truncated: bool
    spans: list[Span]
    prompted: bool = False
    """Whether the text itself began with its prompt."""

    @classmethod
    def whole(cls, tokenized: TokenizedText, start: int, end: int) -> "Pass":
        """Return the pass of characters [start, end) of a text, once tokenized, with a single vector."""
        return cls(tokenized.ids, tokenized.truncated, [Span(start, end, 0, len(tokenized.ids))])

    def after(self, prompt: int) -> "Pass":
        """Return the pass for the text with its own prompt, of `prompt` characters, still in front."""
        spans = [replace(span, start=span.start + prompt, end=span.end + prompt) for span in self.spans]
        return replace(self, spans=spans, prompted=True)


def cut_in_pieces(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    texts: Sequence[str],
    chunking: Chunking,
    limits: Limits = NO_LIMITS,
) -> Pieces[list[list[Pass]]]:
    """Cut each text and tokenize what the model will read, with the text's prompt before every pass.

    A text that fits into a chunk is not cut. The spans of a text cover all its characters; with overlap 0 each begins
    where the previous span ends. A chunk has fewer tokens where the prompt leaves room for fewer. Raises TextRefused
    when the prompt leaves too little room beyond the overlap; ValueError beyond the limits, before any chunk is
    tokenized.
    """
    starts = yield from token_starts(tokenizer, texts, limits)
    prompt_tokens = yield from lengths(tokenizer, prompts)
    cutters = list(map(partial(Cutter, tokenizer), prompts, texts, starts, prompt_tokens))
    plans: list[list[Chunk]] = []
    for position, cutter in enumerate(cutters):
        plans.append(list(cutter.plan(chunking, cutter.room(position, chunking))))
        if position % PIECE_TEXTS == 0:
            yield
    limits.check_chunks(sum(map(len, plans)))
    limits.check_tokens(
        sum(cutter.tokens_of(plan, chunking.late) for cutter, plan in zip(cutters, plans, strict=True)), is_all=True
    )
    return (yield from (late_passes if chunking.late else _passes)(cutters, plans))


def token_starts(tokenizer: Tokenizer, texts: Sequence[str], limits: Limits) -> "Pieces[list[array[int]]]":
    """Return the character at which each token of each text begins. Raises TooManyTokens."""
    starts = [array("I") for _ in texts]
    counted = 0
    for tokens in tokenizer.add_starts(texts, starts):
        counted += tokens
        limits.check_tokens(counted)
        yield
    return starts


def lengths(tokenizer: Tokenizer, prompts: Sequence[str]) -> Pieces[list[int]]:
    """Return how many tokens each prompt has; equal prompts are tokenized once."""
    distinct = list(dict.fromkeys(prompts))
    found: dict[str, int] = {}
    for piece in pieces_of(list(map(len, distinct))):
        some = [distinct[i] for i in piece]
        found |= zip(some, tokenizer.lengths(some), strict=True)
        yield
    return [found[prompt] for prompt in prompts]


def _passes(cutters: "Sequence[Cutter]", plans: Sequence[list[Chunk]]) -> Pieces[list[list[Pass]]]:
    """Return a pass for each chunk."""
    # Chunks of all texts together, as the tokenizer divides a piece among the cores.
    chunks = [
        (position, chunk, *cutters[position].characters(chunk)) for position, plan in enumerate(plans) for chunk in plan
    ]
    passes: list[list[Pass]] = [[] for _ in cutters]
    for piece in pieces_of([len(cutters[position].prompt) + end - start for position, _, start, end in chunks]):
        some = chunks[piece.start : piece.stop]
        tokenized = cutters[0].tokenizer.encode(
            [cutters[position].prompt for position, *_ in some],
            [cutters[position].text[start:end] for position, _, start, end in some],
        )
        for (position, chunk, start, end), result in zip(some, tokenized, strict=True):
            fits = not result.truncated
            passes[position].extend([Pass.whole(result, start, end)] if fits else cutters[position].halves(chunk))
        yield
    return passes


def late_passes(cutters: "Sequence[Cutter]", plans: Sequence[list[Chunk]]) -> Pieces[list[list[Pass]]]:
    """Return passes that each hold as many chunks as fit."""
    passes: list[list[Pass]] = []
    for cutter, plan in zip(cutters, plans, strict=True):
        passes.append([])
        for some in cutter.late_passes(plan):
            passes[-1].extend(some)
            yield
    return passes


@dataclass(frozen=True, slots=True)
class Cutter:
    """Cuts a text, whose tokens begin at the characters `starts`."""

    tokenizer: Tokenizer
    prompt: str
    text: str
    starts: "array[int]"
    prompt_tokens: int
    """Tokens besides the text's: the prompt, `<bos>` and `<eos>`."""

    def room(self, position: int, chunking: Chunking) -> int:
        """Return how many tokens of text fit beside the prompt. Raises TextRefused if these are too few to advance."""
        limit = self.tokenizer.max_tokens
        room = limit - self.prompt_tokens
        if room < chunking.overlap + min(MIN_CHUNK_STEP, chunking.chunk - chunking.overlap):
            raise TextRefused(
                position,
                f"leaves {max(room, 0):,} of {limit:,} tokens for the text, with an overlap of {chunking.overlap:,}; "
                "shorten it",
                is_prompt=True,
            )
        return room

    def characters(self, chunk: Chunk) -> tuple[int, int]:
        """Return the chunk's characters. A character of several tokens belongs to the chunk of the last of them."""
        first, last = chunk
        is_final = last == len(self.starts)
        return (0 if first == 0 else self.starts[first]), (len(self.text) if is_final else self.starts[last])

    def plan(self, chunking: Chunking, room: int) -> Iterator[Chunk]:
        """Yield the text's chunks, except those that add no character to the previous chunk."""
        count, size, covered = len(self.starts), min(chunking.chunk, room), 0
        for first in range(0, count, size - chunking.overlap):
            chunk = first, min(first + size, count)
            if (end := self.characters(chunk)[1]) > covered:
                yield chunk
                covered = end
            if chunk[1] == count:
                return

    def halves(self, chunk: Chunk) -> Iterator[Pass]:
        """Yield the chunk as a pass, or in halves where, once cut out, it has more tokens and no longer fits."""
        start, end = self.characters(chunk)
        if start == end:
            return
        tokenized = self.tokenizer.encode([self.prompt], [self.text[start:end]])[0]
        first, last = chunk
        if not tokenized.truncated or last - first < 2:
            yield Pass.whole(tokenized, start, end)
            return
        middle = (first + last) // 2
        yield from self.halves((first, middle))
        yield from self.halves((middle, last))

    def tokens_of(self, plan: list[Chunk], late: bool) -> int:
        """Return about how many tokens the model reads for the chunks, with the prompt before each pass."""
        if not late:
            return sum(last - first + self.prompt_tokens for first, last in plan)
        tokens = begin = 0
        while begin < len(plan):
            count = self._fitting(plan, begin)
            tokens += plan[begin + count - 1][1] - plan[begin][0] + self.prompt_tokens
            begin += count
        return tokens

    def late_passes(self, plan: list[Chunk]) -> Iterator[list[Pass]]:
        """Yield passes that hold as many chunks as fit; a chunk that does not fit is read alone."""
        if len(plan) == 1:
            yield self.alone(plan, 0)
            return
        begin = 0
        while begin < len(plan):
            found, count = self._longest_pass(plan, begin)
            yield [found] if found else self.alone(plan, begin)
            begin += count

    def alone(self, plan: list[Chunk], position: int) -> list[Pass]:
        """Return the passes of a chunk that is read without its neighbours."""
        return list(self.halves(plan[position]))

    def _fitting(self, plan: list[Chunk], begin: int, less: int = 0) -> int:
        """Return how many chunks from `begin` on should fit into a pass that has `less` tokens fewer than the most."""
        most = plan[begin][0] + self.tokenizer.max_tokens - self.prompt_tokens - less
        return max(1, bisect_right(plan, most, begin, key=itemgetter(1)) - begin)

    def _longest_pass(self, plan: list[Chunk], begin: int) -> tuple[Pass | None, int]:
        """Return a pass over as many chunks from `begin` on as fit, and their number; None where none fits.

        A part that is cut out may have more or fewer tokens than it had within the whole. So it is tokenized again with
        fewer chunks where it is too long, and with more where the next would still fit.
        """
        found: tuple[Pass | None, int] = None, 1
        if plan[begin][1] - plan[begin][0] > self.tokenizer.max_tokens:  # too long to be tokenized just to see that
            return found
        count, less = self._fitting(plan, begin), 0
        while count > found[1] or found[0] is None:
            late_pass, left = self._late_pass(plan[begin : begin + count])
            if late_pass is None:
                if found[0] is not None or count == 1:
                    break
                less = 2 * less - left  # doubled each time, so few attempts are needed
                count = min(count - 1, self._fitting(plan, begin, less))
                continue
            found = late_pass, count
            more = plan[begin : begin + count + 1][-1][1] - plan[begin + count - 1][1]
            count += 0 < more <= left + CUT_TOKENS
        return found

    def _late_pass(self, chunks: list[Chunk]) -> tuple[Pass | None, int]:
        """Return a pass over neighbouring chunks, with a span for each, or None; and how many more tokens would fit."""
        ranges = [self.characters(chunk) for chunk in chunks]
        begin, end = ranges[0][0], ranges[-1][1]
        ids, token_starts = self.tokenizer.locate(self.prompt, self.text[begin:end])
        left = self.tokenizer.max_tokens - len(ids)
        if left < 0:
            return None, left
        spans = [Span(a, b, *_tokens(token_starts, a - begin, b - begin)) for a, b in ranges]
        return Pass(ids, False, spans), left


def _tokens(token_starts: list[int], start: int, end: int) -> tuple[int, int]:
    """Return the tokens that begin in [start, end); where none does, the token that covers it."""
    first, last = bisect_left(token_starts, start), bisect_left(token_starts, end)
    return (first, last) if first < last else (first - 1, first)
