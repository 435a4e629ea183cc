"""Long texts cut into chunks of tokens, as ranges of characters that cut the original text exactly."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.tokenizer import TextRefused, TokenizedText, Tokenizer

Chunk = tuple[int, int]
"""A range [first, last) of a text's tokens."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """How texts are cut: into chunks of `chunk` tokens, of which `overlap` are also in the next one.

    `late` is late chunking (arXiv 2409.04701): the model reads as many chunks as fit in one pass, and a chunk's vector
    is the mean over its own tokens of that. Raises ValueError for numbers that do not go together.
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
    """What the model reads at once, and the vectors that come of it: one, or with late chunking one a chunk."""

    ids: list[int]
    truncated: bool
    spans: list[Span]


def uncut(tokenized: TokenizedText, length: int) -> Pass:
    """Return the pass of a whole text of `length` characters."""
    return _pass(tokenized, 0, length)


def passes(
    tokenizer: Tokenizer, prompts: Sequence[str], texts: Sequence[str], chunking: Chunking, most: int | None = None
) -> list[list[Pass]]:
    """Cut each text and tokenize what the model is to read, always with the text's prompt before it.

    A text of one chunk is not cut. The spans of a text cover it from its first character to its last; with overlap 0
    each begins where the one before ends. A chunk has fewer tokens where the prompt leaves room for fewer. Raises
    TextRefused when it leaves room for none, or for no more than the overlap; ValueError for more chunks than `most`.
    """
    all_starts = tokenizer.starts(texts)
    cut = [_Cut(tokenizer, *one) for one in zip(prompts, texts, all_starts, strict=True)]
    plans = [list(_plan(one, _room(tokenizer, i, one.prompt, chunking), chunking)) for i, one in enumerate(cut)]
    if most is not None and (total := sum(map(len, plans))) > most:
        raise ValueError(
            f"chunk: the texts make {total:,} chunks; {most:,} are allowed: give fewer texts, or larger chunks"
        )
    if chunking.late:
        return [_late(one, plan) for one, plan in zip(cut, plans, strict=True)]
    # All chunks of all texts in one call, which the tokenizer shares out among the cores.
    chunks = [(one, chunk, one.characters(chunk)) for one, plan in zip(cut, plans, strict=True) for chunk in plan]
    tokenized = tokenizer.encode([one.prompt for one, *_ in chunks], [one.text[a:b] for one, _, (a, b) in chunks])
    found: dict[int, list[Pass]] = {id(one): [] for one in cut}
    for (one, chunk, (start, end)), ids in zip(chunks, tokenized, strict=True):
        found[id(one)].extend([_pass(ids, start, end)] if not ids.truncated else one.halves(chunk))
    return list(found.values())


def _room(tokenizer: Tokenizer, position: int, prompt: str, chunking: Chunking) -> int:
    """Return how many tokens of text fit beside the prompt."""
    room = tokenizer.max_tokens - len(tokenizer.locate(prompt, "")[0])
    if room <= chunking.overlap:
        raise TextRefused(
            position,
            f"leaves {max(room, 0):,} of {tokenizer.max_tokens:,} tokens for the text, with an overlap of "
            f"{chunking.overlap:,}; shorten it",
            is_prompt=True,
        )
    return room


def _pass(tokenized: TokenizedText, start: int, end: int) -> Pass:
    return Pass(tokenized.ids, tokenized.truncated, [Span(start, end, 0, len(tokenized.ids))])


@dataclass(frozen=True, slots=True)
class _Cut:
    """A text to be cut, with the characters at which its tokens begin."""

    tokenizer: Tokenizer
    prompt: str
    text: str
    starts: list[int]

    def characters(self, chunk: Chunk) -> tuple[int, int]:
        """Return the chunk's characters. One that several tokens spell goes whole to the chunk of its last token."""
        first, last = chunk
        ends = last == len(self.starts)
        return (0 if first == 0 else self.starts[first]), (len(self.text) if ends else self.starts[last])

    def halves(self, chunk: Chunk) -> Iterator[Pass]:
        """Yield the chunk as one pass or, where cut out it has more tokens than it had and does not fit, in halves."""
        start, end = self.characters(chunk)
        if start == end:
            return
        tokenized = self.tokenizer.encode([self.prompt], [self.text[start:end]])[0]
        first, last = chunk
        if not tokenized.truncated or last - first < 2:
            yield _pass(tokenized, start, end)
            return
        middle = (first + last) // 2
        yield from self.halves((first, middle))
        yield from self.halves((middle, last))


def _plan(cut: _Cut, room: int, chunking: Chunking) -> Iterator[Chunk]:
    """Yield the text's chunks, without those that hold no character beyond the one before."""
    count, size, done = len(cut.starts), min(chunking.chunk, room), 0
    for first in range(0, count, size - chunking.overlap):
        chunk = first, min(first + size, count)
        if (end := cut.characters(chunk)[1]) > done:
            yield chunk
            done = end
        if chunk[1] == count:
            return


def _late(cut: _Cut, plan: list[Chunk]) -> list[Pass]:
    """Gather chunks into passes, as many as fit into each."""
    if len(plan) == 1:
        return list(cut.halves(plan[0]))
    found: list[Pass] = []
    while plan:
        count = next((n for n in range(len(plan), 0, -1) if plan[n - 1][1] - plan[0][0] < cut.tokenizer.max_tokens), 1)
        while (one := _late_pass(cut, plan[:count])) is None and count > 1:
            count -= 1  # with its prompt it is too long
        found.extend([one] if one else cut.halves(plan[0]))
        plan = plan[count:]
    return found


def _late_pass(cut: _Cut, chunks: list[Chunk]) -> Pass | None:
    """Return one pass over neighbouring chunks, with a span for each; None if it is too long."""
    ranges = [cut.characters(chunk) for chunk in chunks]
    begin, end = ranges[0][0], ranges[-1][1]
    ids, starts = cut.tokenizer.locate(cut.prompt, cut.text[begin:end])
    if len(ids) > cut.tokenizer.max_tokens:
        return None
    spans = [Span(a, b, *_tokens(starts, a - begin, b - begin)) for a, b in ranges]
    return Pass(ids, False, spans)


def _tokens(starts: list[int], start: int, end: int) -> tuple[int, int]:
    """Return the tokens that begin in [start, end), or the one that covers it where none does."""
    first, last = bisect_left(starts, start), bisect_left(starts, end)
    return (first, last) if first < last else (first - 1, first)
