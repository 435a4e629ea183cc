"""The task prompts that EmbeddingGemma was trained with. A text follows its prompt with nothing in between."""

import re
from typing import NamedTuple

TITLED_TASK = "retrieval_document"
"""The only task whose prompt has a place for a title."""
NO_TITLE = "none"

PROMPTS: dict[str, str] = {
    "retrieval_document": "title: {title} | text: ",
    "retrieval_query": "task: search result | query: ",
    "classification": "task: classification | query: ",
    "clustering": "task: clustering | query: ",
    "semantic_similarity": "task: sentence similarity | query: ",
    "question_answering": "task: question answering | query: ",
    "fact_verification": "task: fact checking | query: ",
    "code_retrieval": "task: code retrieval | query: ",
    "summarization": "task: summarization | query: ",
    "none": "",
}
"""Prompts by task, as in the EmbeddingGemma model card; `none` leaves the text as it is."""


SECOND_PROMPTS: dict[str, str] = PROMPTS | {"summarization": PROMPTS["semantic_similarity"]}
"""The same for EmbeddingGemma 2, which has no prompt of its own for summaries."""


PROMPT_NAMES: dict[str, str] = {
    "query": "retrieval_query",
    "document": "retrieval_document",
    "BitextMining": "retrieval_query",
    "Clustering": "clustering",
    "Classification": "classification",
    "InstructionRetrieval": "code_retrieval",
    "MultilabelClassification": "classification",
    "PairClassification": "semantic_similarity",
    "Reranking": "retrieval_query",
    "Retrieval": "retrieval_query",
    "Retrieval-query": "retrieval_query",
    "Retrieval-document": "retrieval_document",
    "STS": "semantic_similarity",
    "Summarization": "summarization",
}
"""Tasks by the names that the official checkpoint's config_sentence_transformers.json gives their prompts."""
SECOND_PROMPT_NAMES: dict[str, str] = PROMPT_NAMES | {
    "SearchQuery": "retrieval_query",
    "Document": "retrieval_document",
    "QuestionAnswering": "question_answering",
    "FactChecking": "fact_verification",
    "CodeRetrieval": "code_retrieval",
    "SentenceSimilarity": "semantic_similarity",
}
"""The same for EmbeddingGemma 2."""


TITLED_PROMPT = re.compile(re.escape(PROMPTS[TITLED_TASK]).replace(re.escape("{title}"), r"[^\n]*?"))


def prompts_of(generation: int) -> dict[str, str]:
    """Return the prompts of EmbeddingGemma, generation 1 or 2, by task."""
    return PROMPTS if generation == 1 else SECOND_PROMPTS


def prompt_for(task: str, title: str | None = None, generation: int = 1) -> str:
    """Return the prompt to put before a text, for EmbeddingGemma or, as `generation` 2, EmbeddingGemma 2.

    A `title` goes into the document prompt; the model expects the word "none" there for a document without a title.
    Raises ValueError for an unknown task, and for a title with any task but `retrieval_document`.
    """
    if task not in PROMPTS:
        raise ValueError(f"task: {task!r} is not a task; use one of {', '.join(PROMPTS)}")
    if task == TITLED_TASK:
        # Not str.format: a title may contain braces.
        return PROMPTS[task].replace("{title}", NO_TITLE if title is None else title)
    if title is not None:
        check_titled(task, "title")
    return prompts_of(generation)[task]


def check_titled(task: str | None, name: str) -> None:
    """Raise ValueError, which begins with the field's name, where a task was chosen that has no place for a title."""
    if task not in (None, TITLED_TASK):
        raise ValueError(f"{name}: task {task!r} has no place for a title; leave it out or use task {TITLED_TASK!r}")


# A longer prompt would leave no room for a text: Gemma's tokens have at most 31 characters.
PROMPT_CHARS = 8192 * 31


class OwnPrompt(NamedTuple):
    """The prompt that a text begins with, and its task."""

    task: str
    prompt: str


def own_prompt(text: str, generation: int = 1) -> OwnPrompt | None:
    """Return the prompt that `text` begins with, None unless it begins with one of the model's to the letter."""
    if not text.startswith(("task: ", "title: ")):  # true of most texts, and takes no time
        return None
    if titled := TITLED_PROMPT.match(text, 0, PROMPT_CHARS):
        return OwnPrompt(TITLED_TASK, titled[0])
    fixed = [(task, prompt) for task, prompt in prompts_of(generation).items() if prompt and task != TITLED_TASK]
    return next((OwnPrompt(task, prompt) for task, prompt in fixed if text.startswith(prompt)), None)
