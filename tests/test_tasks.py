import pytest

from tasks import PROMPTS, prompt_for

# The model card's strings, written out again: a typing error in the table would cost quality and raise no error.
EXPECTED = {
    "retrieval_query": "task: search result | query: ",
    "retrieval_document": "title: none | text: ",
    "question_answering": "task: question answering | query: ",
    "fact_verification": "task: fact checking | query: ",
    "classification": "task: classification | query: ",
    "clustering": "task: clustering | query: ",
    "semantic_similarity": "task: sentence similarity | query: ",
    "code_retrieval": "task: code retrieval | query: ",
    "summarization": "task: summarization | query: ",
    "none": "",
}


def test_prompts_are_the_model_cards() -> None:
    assert {task: prompt_for(task) for task in PROMPTS} == EXPECTED


def test_title_goes_into_the_document_prompt() -> None:
    assert prompt_for("retrieval_document", "Mars {title} | text: {}") == "title: Mars {title} | text: {} | text: "


def test_title_with_another_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"title: task 'clustering' has no place.*retrieval_document"):
        prompt_for("clustering", "Mars")


def test_unknown_task_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"task: 'retrieval' is not a task; use one of retrieval_document, .*, none"):
        prompt_for("retrieval")
