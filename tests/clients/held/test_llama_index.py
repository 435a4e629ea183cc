"""LlamaIndex's class for Gemini."""

from typing import Any

import pytest
from google.genai import errors
from google.genai.types import EmbedContentConfig, HttpOptions
from llama_index.embeddings.google_genai import GoogleGenAIEmbedding

from tests.clients.support import DOCUMENTS, QUERY, Predict, check_same


def embeddings(apis: str, model: str = "embeddinggemma-300m", **config: Any) -> GoogleGenAIEmbedding:
    """Return the class with a server's URL."""
    return GoogleGenAIEmbedding(
        model,
        api_key="none",
        http_options=HttpOptions(base_url=apis),
        embedding_config=EmbedContentConfig(**config),
    )


def test_documents_and_queries_have_their_tasks(apis: str, predict: Predict) -> None:
    embedding = embeddings(apis, output_dimensionality=256)
    check_same(embedding.get_text_embedding_batch(DOCUMENTS), predict(DOCUMENTS, dimensions=256))
    check_same(embedding.get_query_embedding(QUERY), predict([QUERY], "retrieval_query", 256)[0])


def test_errors(apis: str) -> None:
    with pytest.raises(errors.ClientError, match=r"gemini-embedding-001.*embeddinggemma-300m"):
        embeddings(apis, "gemini-embedding-001").get_query_embedding(QUERY)
    with pytest.raises(errors.ClientError, match=r"outputDimensionality.*300"):
        embeddings(apis, output_dimensionality=300).get_query_embedding(QUERY)
