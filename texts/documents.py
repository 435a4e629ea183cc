"""Documents that come in chunks: the chunks of a document are read together, and each has a vector (late chunking)."""

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from engine.pieces import PIECE_TEXTS, Pieces
from engine.tokenizer import TextRefused, Tokenizer, Truncate
from texts.chunking import Chunk, Cutter, Pass, late_passes, lengths, token_starts
from texts.limits import NO_LIMITS, Limits
from texts.options import Options
from texts.prepare import Prepared
from texts.prompts import split_prompt


def prepare_documents(
    tokenizer: Tokenizer, texts: Sequence[str], sizes: Sequence[int], options: Options, limits: Limits = NO_LIMITS
) -> Pieces[Prepared]:
    """Return what the model reads for documents, the first of which has the first `sizes[0]` texts, and so on.

    A document is its texts with nothing in between. The model reads it as the chunks of late chunking: as many as fit
    in one pass, after the prompt, and a text's vector is the mean over the tokens that begin in it. A text that is a
    document by itself, or does not fit into a pass with the prompt, is read as if it were no chunk. Raises TextRefused
    for a text that may not be cut to the limit; TooManyTokens.
    """
    bounds = list(pairwise(accumulate(sizes, initial=0)))
    prompts: list[str] = []
    rests = list(texts)
    for first, _ in bounds:
        prompt, rests[first] = split_prompt(first, texts[first], None, options)
        prompts.append(prompt)
    joined = ["".join(rests[first:last]) for first, last in bounds]
    starts = yield from token_starts(tokenizer, joined, limits)
    prompt_tokens = yield from lengths(tokenizer, prompts)
    cutters: list[_GivenChunks] = []
    plans: list[list[Chunk]] = []
    for position, (first, last) in enumerate(bounds):
        marked, plan = _plan(starts[position], list(accumulate(map(len, rests[first:last]))))
        of_document = prompts[position], joined[position], marked, prompt_tokens[position]
        cutters.append(_GivenChunks(tokenizer, *of_document, options.truncate, first))
        plans.append(plan)
        if position and position % PIECE_TEXTS == 0:
            yield
    tokens = sum(cutter.tokens_of(plan, late=True) for cutter, plan in zip(cutters, plans, strict=True))
    limits.check_tokens(tokens, is_all=True)
    passes = yield from late_passes(cutters, plans)
    for (first, _), its_passes in zip(bounds, passes, strict=True):
        if rests[first] is not texts[first]:
            its_passes[:] = [each.after(len(texts[first]) - len(rests[first])) for each in its_passes]
    return Prepared([each for its_passes in passes for each in its_passes], list(range(len(texts))), late_chunking=True)


@dataclass(frozen=True, slots=True)
class _GivenChunks(Cutter):
    """Reads the chunks of one document."""

    truncate: Truncate
    """The end to cut of a chunk that does not fit into a pass."""
    first: int
    """The position of the document's first chunk among the texts."""

    def alone(self, plan: list[Chunk], position: int) -> list[Pass]:
        """Return the pass of one chunk. Raises TextRefused where it is too long and may not be cut."""
        start, end = self.characters(plan[position])
        try:
            [tokenized] = self.tokenizer.encode([self.prompt], [self.text[start:end]], self.truncate)
        except TextRefused as refused:
            refused.position = self.first + position
            raise
        return [Pass.whole(tokenized, start, end)]


def _plan(starts: "array[int]", ends: Sequence[int]) -> "tuple[array[int], list[Chunk]]":
    """Return the chunks that end at the characters `ends`, as ranges of `starts`, which the ends are added to.

    A chunk's characters are found by the starts of tokens, and a token may go on where a chunk ends.
    """
    marked = array("I")
    lasts = [0]
    begin = 0
    for end in ends[:-1]:
        stop = bisect_left(starts, end, begin)
        marked.extend(starts[begin:stop])
        lasts.append(len(marked))
        if stop == len(starts) or starts[stop] != end:
            marked.append(end)
        begin = stop
    marked.extend(starts[begin:])
    return marked, list(pairwise([*lasts, len(marked)]))
