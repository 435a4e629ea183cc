"""Documents in chunks are read as late chunking reads the whole document."""

import itertools
import random

import pytest

from engine.pieces import all_of
from engine.tokenizer import TextRefused, Tokenizer
from tests.support.predictions import TEXTS
from texts.chunking import Chunking
from texts.documents import prepare_documents
from texts.limits import NO_LIMITS, Limits, TooManyTokens
from texts.options import Options
from texts.prepare import Prepared, prepare
from weights import SMALL

LONG = "".join(f"In the year {year} the river rose, and nobody wrote it down.\n" for year in range(900, 1500))
ODD = "👩‍👩‍👧 e\u0301 生命 internationalisation " * 12


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(SMALL)


def read(tokenizer: Tokenizer, documents: list[list[str]], limits: Limits = NO_LIMITS, **options: object) -> Prepared:
    """Return what the model reads for documents, given as lists of chunks."""
    texts = [text for document in documents for text in document]
    sizes = list(map(len, documents))
    return all_of(prepare_documents(tokenizer, texts, sizes, Options(**options), limits))  # type: ignore[arg-type]


def parts(text: str, ends: list[int]) -> list[str]:
    return [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)])]


@pytest.mark.parametrize("chunk", [7, 200, 2000])
def test_chunks_of_late_chunking_given_back_are_read_alike(tokenizer: Tokenizer, chunk: int) -> None:
    texts = [*TEXTS, LONG, "short"]
    whole = prepare(tokenizer, texts, [None] * len(texts), Options(chunking=Chunking(chunk, late=True)))
    cut = [
        [
            text[span.start : span.end]
            for span, owner in zip(whole.spans, whole.owners, strict=True)
            if owner == position
        ]
        for position, text in enumerate(texts)
    ]
    given = read(tokenizer, cut)
    assert given.token_ids == whole.token_ids and given.ranges == whole.ranges
    assert given.owners == list(range(sum(map(len, cut)))) and given.truncated == [False] * len(given.owners)
    firsts = [given.owners.index(sum(map(len, cut[:position]))) for position in range(len(texts))]
    assert set(firsts) <= set(given.pass_texts) and len(given.pass_texts) == len(given.passes)


@pytest.mark.parametrize("seed", range(4))
def test_a_text_has_the_tokens_that_begin_in_it(tokenizer: Tokenizer, seed: int) -> None:
    """Also where a text ends within a word, and so within a token."""
    ends = sorted(random.Random(seed).sample(range(1, len(ODD)), 40))
    cut = [part for part in parts(ODD, ends) if part.strip()]
    text = "".join(cut)
    prepared = read(tokenizer, [cut], task="none")
    [one] = prepared.passes
    ids, starts = tokenizer.locate("", text)
    assert one.ids == ids
    assert [text[span.start : span.end] for span in one.spans] == cut
    for span in one.spans:
        began = [position for position, at in enumerate(starts) if span.start <= at < span.end]
        assert list(range(span.first, span.last)) == (began or [span.first])
        assert began or starts[span.first] < span.start < starts[span.first + 1]


def test_a_document_of_one_text_is_that_text(tokenizer: Tokenizer) -> None:
    prepared = read(tokenizer, [["one"], ["two", " three"]], task="clustering")
    alone = prepare(tokenizer, ["one"], [None], Options(task="clustering"))
    assert prepared.token_ids[0] == alone.token_ids[0] and prepared.token_counts[0] == alone.token_counts[0]
    assert prepared.pass_texts == [0, 1] and prepared.owners == [0, 1, 2]


def test_a_prompt_at_the_beginning_is_the_documents(tokenizer: Tokenizer) -> None:
    own = read(tokenizer, [["first"], ["title: none | text: The river", " rises."]])
    given = read(tokenizer, [["first"], ["The river", " rises."]], task="retrieval_document")
    assert own.token_ids == given.token_ids and own.ranges == given.ranges
    assert own.prompted == [False, True, True]
    with pytest.raises(TextRefused, match="text 1 begins with the prompt of task 'retrieval_document', and the task"):
        read(tokenizer, [["first"], ["title: none | text: The river", " rises."]], task="clustering")


@pytest.mark.parametrize("words", [3_000, 60_000])
def test_a_text_longer_than_the_model_reads_is_refused_or_cut(tokenizer: Tokenizer, words: int) -> None:
    documents = [["one"], ["two", " word" * words, " three", " four"]]
    with pytest.raises(TextRefused, match=r"text 2 has .* tokens with its prompt and the limit is 2,048"):
        read(tokenizer, documents, truncate="none")
    prepared = read(tokenizer, documents)
    assert prepared.truncated == [False, False, True, False, False]
    assert prepared.pass_texts == [0, 1, 2, 3] and len(prepared.passes[3].spans) == 2
    [cut] = tokenizer.encode(["title: none | text: "], [" word" * words])
    assert prepared.token_ids[2] == cut.ids and prepared.token_counts[2] == 2048


def test_a_text_that_cannot_fit_is_not_tokenized_to_find_that_out(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    located: list[int] = []
    locate = tokenizer.locate

    def watched(prompt: str, text: str) -> object:
        located.append(len(text))
        return locate(prompt, text)

    monkeypatch.setattr(tokenizer, "locate", watched)
    read(tokenizer, [["one", " word" * 10_000, " two", " three"]])
    assert located and max(located) < 1_000


def test_more_tokens_than_a_request_may_have_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(TooManyTokens, match=r"20,000 tokens are allowed .* more tokens than that"):
        read(tokenizer, [["word " * 30_000, "word"]], Limits(tokens=20_000))
    long_prompt = f"title: {'t ' * 900}| text: one"
    with pytest.raises(TooManyTokens, match=r"20,000 tokens are allowed .* \d\d,\d\d\d tokens with their prompts"):
        read(tokenizer, [[long_prompt, *["word " * 700] * 24]], Limits(tokens=20_000))
