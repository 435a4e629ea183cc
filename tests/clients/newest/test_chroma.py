"""Chroma's embedding functions that take a URL."""

import chromadb
import ollama
import openai
import pytest
from chromadb.utils.embedding_functions import (
    GoogleGeminiEmbeddingFunction,
    HuggingFaceEmbeddingServer,
    OllamaEmbeddingFunction,
    OpenAIEmbeddingFunction,
)

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"
QUERIES = f"{MODEL}:retrieval_query"


def openais(doors: str, model: str = MODEL) -> OpenAIEmbeddingFunction:
    """Return the function for OpenAI's API."""
    return OpenAIEmbeddingFunction(api_base=f"{doors}/v1", api_key="none", model_name=model)


def test_openais(doors: str, predict: Predict) -> None:
    check_same(openais(doors)(DOCUMENTS), predict(DOCUMENTS))
    check_same(openais(doors, QUERIES)([QUERY]), predict([QUERY], "retrieval_query"))
    with pytest.raises(openai.NotFoundError, match=r"bge-m3.*embeddinggemma-300m"):
        openais(doors, "bge-m3")([QUERY])
    with pytest.raises(openai.BadRequestError, match="2,048"):
        openais(doors)([LONG])


def test_a_collection_is_asked_with_a_querys_vector(doors: str) -> None:
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=openais(doors))
    collection.add(ids=["parcels", "refunds"], documents=DOCUMENTS)
    found = collection.query(query_embeddings=openais(doors, QUERIES)([QUERY]), n_results=1)
    assert found["ids"] == [["refunds"]]


def test_ollamas(doors: str, predict: Predict) -> None:
    check_same(OllamaEmbeddingFunction(doors, MODEL)(DOCUMENTS), predict(DOCUMENTS))
    check_same(OllamaEmbeddingFunction(doors, QUERIES)([QUERY]), predict([QUERY], "retrieval_query"))
    with pytest.raises(ollama.ResponseError, match=r"nomic-embed-text.*embeddinggemma-300m"):
        OllamaEmbeddingFunction(doors, "nomic-embed-text")([QUERY])


def test_teis(doors: str, predict: Predict) -> None:
    check_same(HuggingFaceEmbeddingServer(f"{doors}/embed")(DOCUMENTS), predict(DOCUMENTS))
    queries = HuggingFaceEmbeddingServer(f"{doors}/embed?prompt_name=query")
    check_same(queries([QUERY]), predict([QUERY], "retrieval_query"))
    # The class does not look whether the answer is an error.
    with pytest.raises(ValueError, match="could not convert string to float"):
        HuggingFaceEmbeddingServer(f"{doors}/embed?truncate=false")([LONG])


def test_geminis(doors: str, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "none")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", doors)
    documents = GoogleGeminiEmbeddingFunction(MODEL, task_type="RETRIEVAL_DOCUMENT", dimension=256)
    queries = GoogleGeminiEmbeddingFunction(MODEL, task_type="RETRIEVAL_QUERY", dimension=256)
    check_same(documents(DOCUMENTS), predict(DOCUMENTS, dimensions=256))
    check_same(queries([QUERY]), predict([QUERY], "retrieval_query", 256))
    with pytest.raises(ValueError, match=r"outputDimensionality.*300"):
        GoogleGeminiEmbeddingFunction(MODEL, dimension=300)([QUERY])
