"""Texts that begin with one of the model's prompts: they get no second one, or are refused where two contradict."""

import pytest

from engine.tokenizer import Tokenizer
from tasks import PROMPTS, prompt_for
from texts.chunking import Chunking
from texts.options import Options
from texts.prepare import Prepared, prepare
from texts.prompts import PromptRefused
from weights import SMALL

TASKS = [task for task in PROMPTS if task != "none"]
TEXT = "The river rises and falls with the moon. " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(SMALL)


def read(tokenizer: Tokenizer, *texts: str, title: str | None = None, **options: object) -> Prepared:
    return prepare(tokenizer, texts, [title] * len(texts), Options(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("chunking", [None, Chunking(64, 16), Chunking(64, late=True)])
def test_a_prompt_in_a_text_is_read_once(tokenizer: Tokenizer, task: str, chunking: Chunking | None) -> None:
    prompt = prompt_for(task)
    plain = read(tokenizer, TEXT, task=task, chunking=chunking)
    for asked in (None, task):
        own = read(tokenizer, "another text", prompt + TEXT, task=asked, chunking=chunking)
        assert own.prompted == [vector > 0 for vector in range(len(own.spans))] and not any(plain.prompted)
        assert own.token_ids[1:] == plain.token_ids
        assert (own.ranges and own.ranges[1:]) == plain.ranges
        # Characters are counted in the text as it was given.
        assert [(s.start - len(prompt), s.end - len(prompt)) for s in own.spans[1:]] == [
            (s.start, s.end) for s in plain.spans
        ]


@pytest.mark.parametrize("task", TASKS)
def test_another_task_is_refused_by_the_texts_position(tokenizer: Tokenizer, task: str) -> None:
    for asked in TASKS:
        if asked != task:
            with pytest.raises(PromptRefused, match=f"text 1 begins with the prompt of task '{task}', and .*'{asked}'"):
                read(tokenizer, "x", prompt_for(task) + "x", task=asked)


def test_a_task_of_none_and_the_setting_leave_texts_as_they_are(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = prompt_for("clustering") + "x"
    assert read(tokenizer, own, task="none").prompted == [False]
    assert read(tokenizer, own, task="none").token_ids == read(tokenizer, own).token_ids
    monkeypatch.setenv("PROMPTS_IN_TEXTS", " ignore\n")
    ignored = read(tokenizer, own, task="retrieval_query")
    assert ignored.prompted == [False]
    assert ignored.token_ids == read(tokenizer, prompt_for("retrieval_query") + own, task="none").token_ids
    monkeypatch.setenv("PROMPTS_IN_TEXTS", "no")
    with pytest.raises(ValueError, match=r"PROMPTS_IN_TEXTS: 'no' is unknown; use one of use, ignore"):
        Options()


def test_titles_of_texts_with_prompts(tokenizer: Tokenizer) -> None:
    titled = prompt_for("retrieval_document", "Tides") + "x"
    assert read(tokenizer, titled).token_ids == read(tokenizer, "x", title="Tides").token_ids
    assert read(tokenizer, titled, title="Tides").prompted == [True]
    with pytest.raises(PromptRefused, match="another title was given than stands there"):
        read(tokenizer, prompt_for("retrieval_document") + "x", title="Tides")
    with pytest.raises(PromptRefused, match="prompt of task 'clustering', and the task is 'retrieval_document'"):
        read(tokenizer, prompt_for("clustering") + "x", title="Tides")


def test_a_prompt_with_nothing_after_it_is_refused(tokenizer: Tokenizer) -> None:
    for rest in ("", " ", "\n\t"):
        with pytest.raises(PromptRefused, match=r"is nothing but the prompt of task 'clustering'; put a text after"):
            read(tokenizer, prompt_for("clustering") + rest)


@pytest.mark.parametrize("text", ["task: search result", "title: Tides\n | text: x", "Task: clustering | query: x"])
def test_what_only_resembles_a_prompt_is_text(tokenizer: Tokenizer, text: str) -> None:
    assert read(tokenizer, text).prompted == [False]
