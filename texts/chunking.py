"""Long texts cut into chunks of tokens, as ranges of characters that cut the original text exactly."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from engine.tokenizer import TextRefused, TokenizedText, Tokenizer

Chunk = tuple[int, int]
"""A range [first, last) of a text's tokens."""


@dataclass(frozen=True, slots=True)
class Chunking:
    """How texts are cut: into chunks of `chunk` tokens, of which `overlap` are also in the next chunk.

    `late` is late chunking (arXiv 2409.04701): the model reads as many chunks as fit in one pass, and a chunk's vector
    is the mean over its own tokens of that pass. Raises ValueError for numbers that do not go together.
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
    """What the model reads at once, and the vectors that come of it: one, or with late chunking one for each chunk."""

    ids: list[int]
    truncated: bool
    spans: list[Span]
    prompted: bool = False
    """Whether the text began with its prompt itself."""

    @classmethod
    def whole(cls, tokenized: TokenizedText, start: int, end: int) -> "Pass":
        """Return the pass of characters [start, end) of a text, tokenized, with one vector."""
        return cls(tokenized.ids, tokenized.truncated, [Span(start, end, 0, len(tokenized.ids))])

    def behind(self, prompt: int) -> "Pass":
        """Return the pass for the text with its own prompt, of so many characters, before what was cut."""
        spans = [replace(span, start=span.start + prompt, end=span.end + prompt) for span in self.spans]
        return replace(self, spans=spans, prompted=True)


def cut_into_passes(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    texts: Sequence[str],
    chunking: Chunking,
    max_chunks: int | None = None,
) -> list[list[Pass]]:
    """Cut each text and tokenize what the model is to read, always with the text's prompt before it.

    A text of one chunk is not cut. The spans of a text cover it from its first character to its last; with overlap 0
    each begins where the one before ends. A chunk has fewer tokens where the prompt leaves room for fewer. Raises
    TextRefused when the prompt leaves room for no token beyond the overlap; ValueError for more than `max_chunks`.
    """
    all_starts = tokenizer.starts(texts)
    cutters = [_Cutter(tokenizer, *args) for args in zip(prompts, texts, all_starts, strict=True)]
    plans = [
        list(cutter.plan(chunking, _room(tokenizer, position, cutter.prompt, chunking)))
        for position, cutter in enumerate(cutters)
    ]
    if max_chunks is not None and (total := sum(map(len, plans))) > max_chunks:
        raise ValueError(
            f"chunk: the texts make {total:,} chunks; {max_chunks:,} are allowed: give fewer texts, or larger chunks"
        )
    if chunking.late:
        return [cutter.late_passes(plan) for cutter, plan in zip(cutters, plans, strict=True)]
    # All chunks of all texts in one call: the tokenizer shares them out among the cores.
    chunks = [
        (position, chunk, *cutters[position].characters(chunk)) for position, plan in enumerate(plans) for chunk in plan
    ]
    tokenized = tokenizer.encode(
        [cutters[position].prompt for position, *_ in chunks],
        [cutters[position].text[start:end] for position, _, start, end in chunks],
    )
    passes: list[list[Pass]] = [[] for _ in cutters]
    for (position, chunk, start, end), result in zip(chunks, tokenized, strict=True):
        fits = not result.truncated
        passes[position].extend([Pass.whole(result, start, end)] if fits else cutters[position].halves(chunk))
    return passes


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


@dataclass(frozen=True, slots=True)
class _Cutter:
    """Cuts one text; `starts` are the characters at which its tokens begin."""

    tokenizer: Tokenizer
    prompt: str
    text: str
    starts: list[int]

    def characters(self, chunk: Chunk) -> tuple[int, int]:
        """Return the chunk's characters. One that several tokens spell goes whole to the chunk of the last of them."""
        first, last = chunk
        is_final = last == len(self.starts)
        return (0 if first == 0 else self.starts[first]), (len(self.text) if is_final else self.starts[last])

    def plan(self, chunking: Chunking, room: int) -> Iterator[Chunk]:
        """Yield the text's chunks, without those that hold no character beyond the chunk before."""
        count, size, covered = len(self.starts), min(chunking.chunk, room), 0
        for first in range(0, count, size - chunking.overlap):
            chunk = first, min(first + size, count)
            if (end := self.characters(chunk)[1]) > covered:
                yield chunk
                covered = end
            if chunk[1] == count:
                return

    def halves(self, chunk: Chunk) -> Iterator[Pass]:
        """Yield the chunk as one pass; in halves where, cut out, it has more tokens than before and does not fit."""
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

    def late_passes(self, plan: list[Chunk]) -> list[Pass]:
        """Gather the chunks into passes, as many as fit into each."""
        if len(plan) == 1:
            return list(self.halves(plan[0]))
        limit = self.tokenizer.max_tokens
        passes: list[Pass] = []
        while plan:
            count = next((n for n in range(len(plan), 0, -1) if plan[n - 1][1] - plan[0][0] < limit), 1)
            while (late_pass := self._late_pass(plan[:count])) is None and count > 1:
                count -= 1  # too long with the prompt
            passes.extend([late_pass] if late_pass else self.halves(plan[0]))
            plan = plan[count:]
        return passes

    def _late_pass(self, chunks: list[Chunk]) -> Pass | None:
        """Return one pass over neighbouring chunks, with a span for each; None if it is too long."""
        ranges = [self.characters(chunk) for chunk in chunks]
        begin, end = ranges[0][0], ranges[-1][1]
        ids, token_starts = self.tokenizer.locate(self.prompt, self.text[begin:end])
        if len(ids) > self.tokenizer.max_tokens:
            return None
        spans = [Span(a, b, *_tokens(token_starts, a - begin, b - begin)) for a, b in ranges]
        return Pass(ids, False, spans)


def _tokens(token_starts: list[int], start: int, end: int) -> tuple[int, int]:
    """Return the tokens that begin in [start, end), or the token that covers it where none does."""
    first, last = bisect_left(token_starts, start), bisect_left(token_starts, end)
    return (first, last) if first < last else (first - 1, first)
