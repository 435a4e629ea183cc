"""What the model reads of texts, and which vector is of which part."""

import pytest

from engine.tokenizer import TextRefused, Tokenizer
from tasks import prompt_for
from texts.chunking import Chunking
from texts.limits import Limits
from texts.options import Options
from texts.prepare import prepare
from weights import SMALL

LONG = "The river rises and falls with the moon. " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(SMALL)


def test_a_whole_text_is_one_pass_behind_its_prompt(tokenizer: Tokenizer) -> None:
    prepared = prepare(tokenizer, ["one", "two"], [None, "Numbers"], Options())
    prompts = [prompt_for("retrieval_document"), prompt_for("retrieval_document", "Numbers")]
    assert prepared.token_ids == [text.ids for text in tokenizer.encode(prompts, ["one", "two"])]
    assert prepared.ranges is None
    assert prepared.owners == prepared.pass_texts == [0, 1]
    assert prepared.token_counts == [len(ids) for ids in prepared.token_ids]
    assert [(span.start, span.end) for span in prepared.spans] == [(0, 3), (0, 3)]


def test_truncation_is_told_for_each_text(tokenizer: Tokenizer) -> None:
    prepared = prepare(tokenizer, ["short", "word " * 4000], [None, None], Options(task="none", truncate="start"))
    assert prepared.truncated == [False, True]
    assert prepared.token_counts[1] == tokenizer.max_tokens
    with pytest.raises(TextRefused, match=r"text 1 has .* tokens"):
        prepare(tokenizer, ["short", "word " * 4000], [None, None], Options(task="none", truncate="none"))


@pytest.mark.parametrize("late", [False, True])
def test_chunks_have_a_vector_each_and_know_their_text(tokenizer: Tokenizer, late: bool) -> None:
    options = Options(task="clustering", chunking=Chunking(32, late=late))
    prepared = prepare(tokenizer, ["short", LONG], [None, None], options)
    assert prepared.owners == sorted(prepared.owners) and set(prepared.owners) == {0, 1}
    assert "".join(LONG[s.start : s.end] for s, i in zip(prepared.spans, prepared.owners, strict=True) if i) == LONG
    if late:  # one pass for all chunks of a text, with a range for each
        assert prepared.pass_texts == [0, 1] and prepared.ranges is not None
        assert [len(ranges) for ranges in prepared.ranges] == [1, len(prepared.spans) - 1]
    else:
        assert prepared.pass_texts == prepared.owners and prepared.ranges is None


def test_too_many_chunks_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"chunk: the texts make .* chunks; 3 are allowed"):
        prepare(tokenizer, [LONG], [None], Options(chunking=Chunking(16)), limits=Limits(chunks=3))
