"""Haystack's components for OpenAI's API and for text-embeddings-inference."""

from typing import Any

import openai
import pytest
from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from huggingface_hub.errors import HfHubHTTPError

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"


def openai_options(apis: str, model: str = MODEL) -> dict[str, Any]:
    """Return the arguments that both components for OpenAI's API take."""
    return {"api_base_url": f"{apis}/v1", "api_key": Secret.from_token("none"), "model": model, "max_retries": 0}


def tei_options(apis: str, **options: Any) -> dict[str, Any]:
    """Return the arguments that both components for text-embeddings-inference take."""
    return {"api_type": "text_embeddings_inference", "api_params": {"url": apis}, "normalize": True, **options}


def embed(embedder: Any, texts: list[str]) -> list[Any]:
    """Return the vectors that a component gives to documents."""
    return [each.embedding for each in embedder.run(documents=[Document(content=text) for text in texts])["documents"]]


def test_openais_components(apis: str, predict: Predict) -> None:
    documents = OpenAIDocumentEmbedder(**openai_options(apis), dimensions=256, progress_bar=False)
    queries = OpenAITextEmbedder(**openai_options(apis, f"{MODEL}:retrieval_query"), dimensions=256)
    check_same(embed(documents, DOCUMENTS), predict(DOCUMENTS, dimensions=256))
    check_same(queries.run(text=QUERY)["embedding"], predict([QUERY], "retrieval_query", 256)[0])


def test_openais_components_raise_openais_errors_if_asked_to(apis: str) -> None:
    with pytest.raises(openai.NotFoundError, match=r"bge-m3.*embeddinggemma-300m"):
        OpenAITextEmbedder(**openai_options(apis, "bge-m3")).run(text=QUERY)
    with pytest.raises(openai.BadRequestError, match="2,048"):
        embed(OpenAIDocumentEmbedder(**openai_options(apis), raise_on_failure=True, progress_bar=False), [LONG])
    assert embed(OpenAIDocumentEmbedder(**openai_options(apis), progress_bar=False), [LONG]) == [None]


def test_teis_components(apis: str, predict: Predict) -> None:
    documents = HuggingFaceAPIDocumentEmbedder(**tei_options(apis), progress_bar=False)
    queries = HuggingFaceAPITextEmbedder(**tei_options(f"{apis}/embed?prompt_name=query"))
    check_same(embed(documents, [*DOCUMENTS, LONG]), predict([*DOCUMENTS, LONG]))
    check_same(queries.run(text=QUERY)["embedding"], predict([QUERY], "retrieval_query")[0])


def test_teis_components_raise_our_message(apis: str) -> None:
    with pytest.raises(HfHubHTTPError, match="2,048"):
        HuggingFaceAPITextEmbedder(**tei_options(apis, truncate=False)).run(text=LONG)
