"""Chunks cut the text exactly, whatever is in it, and are what the model would read of a text of their own."""

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.packed import PackedEngine
from engine.pieces import all_of
from engine.tokenizer import TextRefused, Tokenizer
from tests.support.predictions import TEXTS
from texts.chunking import Chunking, Pass, Span, cut_in_pieces

PROMPT = "title: none | text: "
PIECES = [
    "ab",
    " ",
    "  ",
    "\n\t",
    "é",
    "e\u0301",
    "ß",
    "👩‍👩‍👧",
    "生命",
    "ما",
    "<eos>",
    "<bos>",
    " committee",
    "𓀀",
    "\u00ad",
    "x" * 40,
]


@pytest.fixture(scope="module")
def tokenizer(small: Path) -> Tokenizer:
    return Tokenizer(small)


def cut_into_passes(*args: Any) -> list[list[Pass]]:
    """Cut texts at once."""
    return all_of(cut_in_pieces(*args))


def spans(found: list[Pass]) -> list[Span]:
    return [span for one in found for span in one.spans]


def random_texts(count: int) -> list[str]:
    generator = random.Random(7)
    made = ("".join(generator.choices(PIECES, k=generator.randint(1, 200))) for _ in range(count))
    return [text for text in made if text.strip()]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(("chunk", "overlap"), [(1, 0), (2, 1), (7, 0), (50, 0), (50, 20), (2000, 0)])
def test_ranges_cover_the_text_and_each_chunk_fits(tokenizer: Tokenizer, chunk: int, overlap: int, late: bool) -> None:
    texts = [*TEXTS, *random_texts(40)]
    for text, found in zip(
        texts, cut_into_passes(tokenizer, [PROMPT] * len(texts), texts, Chunking(chunk, overlap, late)), strict=True
    ):
        cut = spans(found)
        assert (cut[0].start, cut[-1].end) == (0, len(text))
        for before, after in itertools.pairwise(cut):
            assert before.start <= after.start <= before.end < after.end, "no gap, and always further"
            assert overlap or after.start == before.end
        if not overlap:
            assert "".join(text[span.start : span.end] for span in cut) == text
        for one in found:
            assert len(one.ids) <= tokenizer.max_tokens and not one.truncated
            assert all(0 <= span.first < span.last <= len(one.ids) for span in one.spans)


def test_a_chunk_is_read_as_a_text_of_its_own(tokenizer: Tokenizer) -> None:
    for text in [*TEXTS, *random_texts(20)]:
        [found] = cut_into_passes(tokenizer, [PROMPT], [text], Chunking(12, 4))
        for one in found:
            [span] = one.spans
            [alone] = tokenizer.encode([PROMPT], [text[span.start : span.end]])
            assert (one.ids, span.first, span.last) == (alone.ids, 0, len(alone.ids))


def test_chunks_have_as_many_tokens_as_asked_for(tokenizer: Tokenizer) -> None:
    text = "The committee met again on Tuesday and could not agree. " * 300
    count = len(tokenizer.starts([text])[0])
    for prompt in ("", PROMPT, "title: " + "a long title " * 20 + " | text: "):
        [found] = cut_into_passes(tokenizer, [prompt], [text], Chunking(500))
        assert len(found) == -(-count // 500)
        for span in spans(found)[:-1]:
            assert abs(len(tokenizer.starts([text[span.start : span.end]])[0]) - 500) <= 1, "the prompt is not counted"
    [found] = cut_into_passes(tokenizer, [PROMPT], [text], Chunking(500, 100))
    assert [span.start for span in spans(found)][:3] == [0, *(tokenizer.starts([text])[0][i] for i in (400, 800))]


def test_a_text_of_one_chunk_is_not_cut(tokenizer: Tokenizer) -> None:
    for late in (False, True):
        [found] = cut_into_passes(tokenizer, [PROMPT], ["A short text."], Chunking(64, 0, late))
        [whole] = tokenizer.encode([PROMPT], ["A short text."])
        assert found == [Pass(whole.ids, False, [Span(0, 13, 0, len(whole.ids))])]


def test_more_than_the_limit_is_cut_to_it(tokenizer: Tokenizer) -> None:
    for text in ("w " * 5000, "🌍" * 3000, "x" * 9000, "\n" * 4000 + "end"):
        [found] = cut_into_passes(tokenizer, [PROMPT], [text], Chunking(1_000_000))
        assert len(found) >= 2 and not any(one.truncated for one in found)
        assert "".join(text[span.start : span.end] for span in spans(found)) == text


def test_late_chunks_share_passes_and_point_at_their_own_tokens(tokenizer: Tokenizer) -> None:
    text = "The committee met again on Tuesday and could not agree. " * 400
    [found] = cut_into_passes(tokenizer, [PROMPT], [text], Chunking(300, 50, late=True))
    assert len(found) < len(spans(found)) / 4
    for one in found:
        begin = one.spans[0].start
        ids, starts = tokenizer.locate(PROMPT, text[begin : one.spans[-1].end])
        assert ids == one.ids
        for span in one.spans:
            own = starts[span.first : span.last]
            assert (own[0], own[-1] < span.end - begin) == (span.start - begin, True)
            assert starts[span.last] == span.end - begin, "up to the next chunk's first token, or <eos>"
    prompt_tokens = len(tokenizer.encode([PROMPT], [""])[0].ids) - 1
    assert abs(found[0].spans[0].first - prompt_tokens) <= 1


def test_millions_of_characters_are_cut(tokenizer: Tokenizer) -> None:
    text = "The committee met again. " * 80_000
    [found] = cut_into_passes(tokenizer, [PROMPT], [text], Chunking(2000))
    assert len(found) > 180
    assert all(a.end == b.start for a, b in itertools.pairwise(spans(found)))


def test_what_does_not_go_together(tokenizer: Tokenizer) -> None:
    for numbers, problem in (
        ((0, 0), "chunk: 0 tokens; give at least 1, or leave it out"),
        ((5, 5), "overlap: 5 tokens; give 0 to 4, fewer than chunk"),
        ((5, -1), "overlap: -1 tokens; give 0 to 4"),
    ):
        with pytest.raises(ValueError, match=problem):
            Chunking(*numbers)
    with pytest.raises(
        TextRefused,
        match=r"the prompt of text 1 leaves 0 of 2,048 tokens for the text, with an overlap of 0; shorten it",
    ):
        cut_into_passes(tokenizer, ["", "w " * 3000], ["a", "b"], Chunking(10))


def test_a_late_vector_is_the_mean_over_its_tokens_after_one_pass(small: Path) -> None:
    engine = PackedEngine(small, "cpu")
    text = "The committee met again on Tuesday and could not agree. " * 30
    [[one]] = cut_into_passes(engine.tokenizer, [PROMPT], [text], Chunking(100, 0, late=True))
    ranges = [(span.first, span.last) for span in one.spans]
    found = engine.embed([[2, 1], one.ids, [2, 50, 1]], [[(0, 2)], ranges, [(0, 3)]])
    tokens = engine.embed([one.ids], [[(i, i + 1) for i in range(len(one.ids))]])
    # The head is linear, so the mean over a chunk's tokens may as well be taken after it.
    expected = [tokens[first:last].mean(axis=0) for first, last in ranges]
    np.testing.assert_allclose(found[1:-1], expected, rtol=0, atol=1e-4 * np.abs(tokens).max())
    whole = engine.embed([one.ids])[0]
    np.testing.assert_allclose(tokens.mean(axis=0), whole, rtol=0, atol=1e-4 * np.abs(whole).max())
    np.testing.assert_allclose(found[[0, -1]], engine.embed([[2, 1], [2, 50, 1]]), rtol=1e-3, atol=1e-3)
    alone = engine.embed([engine.tokenizer.encode([PROMPT], [text[one.spans[1].start : one.spans[1].end]])[0].ids])[0]
    cosine = found[2] @ alone / np.linalg.norm(found[2]) / np.linalg.norm(alone)
    assert cosine < 0.9999, "it has read the chunks beside it"
