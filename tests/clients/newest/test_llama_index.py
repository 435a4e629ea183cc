"""LlamaIndex's classes for servers with OpenAI's API and for text-embeddings-inference."""

from typing import Any

import openai
import pytest
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from tests.clients.support import DOCUMENTS, LONG, ONE_LINE_DOCUMENTS, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"


def openai_like(apis: str, model: str = MODEL, **options: Any) -> OpenAILikeEmbedding:
    """Return the class with a server's URL."""
    return OpenAILikeEmbedding(model_name=model, api_base=f"{apis}/v1", api_key="none", max_retries=0, **options)


def test_openai_like_has_an_object_for_documents_and_one_for_queries(apis: str, predict: Predict) -> None:
    documents, queries = openai_like(apis), openai_like(apis, f"{MODEL}:retrieval_query")
    check_same(documents.get_text_embedding_batch(DOCUMENTS), predict(ONE_LINE_DOCUMENTS))
    check_same(queries.get_query_embedding(QUERY), predict([QUERY], "retrieval_query")[0])


def test_openai_like_takes_dimensions_and_further_fields(apis: str, predict: Predict) -> None:
    embeddings = openai_like(apis, dimensions=256, additional_kwargs={"extra_body": {"task": "clustering"}})
    check_same(embeddings.get_text_embedding(QUERY), predict([QUERY], "clustering", 256)[0])


def test_openai_like_raises_openais_errors(apis: str) -> None:
    with pytest.raises(openai.NotFoundError, match=r"bge-m3.*embeddinggemma-300m"):
        openai_like(apis, "bge-m3").get_query_embedding(QUERY)
    with pytest.raises(openai.BadRequestError, match="2,048"):
        openai_like(apis).get_text_embedding(LONG)


def test_tei_has_an_object_for_documents_and_one_for_queries(apis: str, predict: Predict) -> None:
    documents = TextEmbeddingsInference(model_name=MODEL, base_url=apis)
    queries = TextEmbeddingsInference(model_name=MODEL, base_url=apis, endpoint="/embed?prompt_name=query")
    check_same(documents.get_text_embedding_batch(DOCUMENTS), predict(DOCUMENTS))
    check_same(documents.get_text_embedding(LONG), predict([LONG])[0])
    check_same(queries.get_query_embedding(QUERY), predict([QUERY], "retrieval_query")[0])


def test_tei_raises_an_error_of_its_own_without_our_message(apis: str) -> None:
    with pytest.raises(KeyError):
        TextEmbeddingsInference(model_name=MODEL, base_url=apis, truncate_text=False).get_text_embedding(LONG)
