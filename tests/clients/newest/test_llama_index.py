"""LlamaIndex's classes for servers with OpenAI's API and for text-embeddings-inference."""

from typing import Any

import openai
import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference

from tests.clients.examples import class_of
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


async def test_the_class_of_the_docs_embeds_queries_as_such(apis: str, predict: Predict) -> None:
    embedding = class_of("LlamaIndex with OpenAI's API")(api_base=f"{apis}/v1", api_key="none", max_retries=0)
    documents, query = predict(ONE_LINE_DOCUMENTS), predict([QUERY], "retrieval_query")[0]
    check_same(embedding.get_text_embedding_batch(DOCUMENTS), documents)
    check_same(await embedding.aget_text_embedding_batch(DOCUMENTS), documents)
    check_same(embedding.get_query_embedding(QUERY), query)
    check_same(await embedding.aget_query_embedding(QUERY), query)
    retriever = VectorStoreIndex([TextNode(text=text) for text in DOCUMENTS], embed_model=embedding).as_retriever()
    cosines = predict(ONE_LINE_DOCUMENTS) @ query
    for found in retriever.retrieve(QUERY):
        assert found.score == pytest.approx(cosines[DOCUMENTS.index(found.text)], abs=1e-6)


def test_tei_puts_prompts_before_the_texts(apis: str, predict: Predict) -> None:
    prompts = {"query_instruction": "task: search result | query:", "text_instruction": "title: none | text:"}
    embedding = TextEmbeddingsInference(model_name=MODEL, base_url=apis, **prompts)
    check_same(embedding.get_text_embedding_batch(DOCUMENTS), predict(DOCUMENTS))
    check_same(embedding.get_query_embedding(QUERY), predict([QUERY], "retrieval_query")[0])


def test_tei_has_an_object_for_documents_and_one_for_queries(apis: str, predict: Predict) -> None:
    documents = TextEmbeddingsInference(model_name=MODEL, base_url=apis)
    queries = TextEmbeddingsInference(model_name=MODEL, base_url=apis, endpoint="/embed?prompt_name=query")
    check_same(documents.get_text_embedding_batch(DOCUMENTS), predict(DOCUMENTS))
    check_same(documents.get_text_embedding(LONG), predict([LONG])[0])
    check_same(queries.get_query_embedding(QUERY), predict([QUERY], "retrieval_query")[0])


def test_tei_raises_an_error_of_its_own_without_our_message(apis: str) -> None:
    with pytest.raises(KeyError):
        TextEmbeddingsInference(model_name=MODEL, base_url=apis, truncate_text=False).get_text_embedding(LONG)
