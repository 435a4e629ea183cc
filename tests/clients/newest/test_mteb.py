"""MTEB's encoder for servers with OpenAI's API."""

from typing import Any

import mteb
import numpy as np
import pytest
from mteb.models import OpenAIAPIEncodeWrapper
from mteb.types import PromptType
from torch.utils.data import DataLoader

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

# The model's own prompts. The encoder puts them before the texts only as instructions.
PROMPTS = {"query": "task: search result | query: ", "document": "title: none | text: "}


def encoder(apis: str, model: str = "embeddinggemma-300m:none", **options: Any) -> OpenAIAPIEncodeWrapper:
    """Return the encoder with a server's URL."""
    prompts = {"prompt_dict": PROMPTS, "use_instructions": True, "instruction_template": "{instruction}"}
    return OpenAIAPIEncodeWrapper(apis, model, **{"use_chat_template": False} | prompts | options)


def encode(encoder: OpenAIAPIEncodeWrapper, texts: list[str], prompt_type: PromptType) -> np.ndarray:
    """Return the vectors that a task of retrieval would get."""
    batches: DataLoader[Any] = DataLoader([{"text": text} for text in texts], batch_size=len(texts))  # type: ignore[arg-type]
    task = mteb.get_task("NFCorpus").metadata
    return np.asarray(
        encoder.encode(
            batches,
            task_metadata=task,
            hf_split="test",
            hf_subset="default",
            prompt_type=prompt_type,
            show_progress_bar=False,
        )
    )


def test_documents_and_queries_have_their_prompts(apis: str, predict: Predict) -> None:
    check_same(encode(encoder(apis), DOCUMENTS, PromptType.document), predict(DOCUMENTS))
    check_same(encode(encoder(apis), [QUERY], PromptType.query), predict([QUERY], "retrieval_query"))


def test_a_long_text_is_cut_at_the_length_asked_for(apis: str, predict: Predict) -> None:
    check_same(encode(encoder(apis, max_length=2048), [LONG], PromptType.document), predict([LONG]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_chat_template": True}, "messages.*use_chat_template=False"),
        ({"model": "bge-m3"}, "bge-m3.*embeddinggemma-300m"),
    ],
)
def test_errors(apis: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        encode(encoder(apis, **options), DOCUMENTS, PromptType.document)
