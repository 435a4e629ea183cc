"""Chroma's embedding functions that take a URL."""

from pathlib import Path

import chromadb
import numpy as np
import ollama
import openai
import pytest
from chromadb.utils.embedding_functions import (
    GoogleGeminiEmbeddingFunction,
    HuggingFaceEmbeddingServer,
    OllamaEmbeddingFunction,
    OpenAIEmbeddingFunction,
)

from tests.clients.examples import class_of
from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"
QUERIES = f"{MODEL}:retrieval_query"


def openais(apis: str, model: str = MODEL) -> OpenAIEmbeddingFunction:
    """Return the function for OpenAI's API."""
    return OpenAIEmbeddingFunction(api_base=f"{apis}/v1", api_key="none", model_name=model)


def test_openais(apis: str, predict: Predict) -> None:
    check_same(openais(apis)(DOCUMENTS), predict(DOCUMENTS))
    check_same(openais(apis, QUERIES)([QUERY]), predict([QUERY], "retrieval_query"))
    with pytest.raises(openai.NotFoundError, match=r"bge-m3.*embeddinggemma-300m"):
        openais(apis, "bge-m3")([QUERY])
    with pytest.raises(openai.BadRequestError, match="2,048"):
        openais(apis)([LONG])


def test_a_collection_is_asked_with_a_querys_vector(apis: str) -> None:
    collection = chromadb.EphemeralClient().create_collection("texts", embedding_function=openais(apis))
    collection.add(ids=["parcels", "refunds"], documents=DOCUMENTS)
    found = collection.query(query_embeddings=openais(apis, QUERIES)([QUERY]), n_results=1)
    assert found["ids"] == [["refunds"]]


def test_the_class_of_the_docs_is_asked_for_queries_also_when_opened_again(
    apis: str, predict: Predict, tmp_path: Path
) -> None:
    function = class_of("Chroma")(f"{apis}/v1")
    check_same(function(DOCUMENTS), predict(DOCUMENTS))
    created = chromadb.PersistentClient(tmp_path).create_collection("texts", embedding_function=function)
    created.add(ids=["parcels", "refunds"], documents=DOCUMENTS)
    collection = chromadb.PersistentClient(tmp_path).get_collection("texts")
    stored = collection.get(include=["embeddings"])["embeddings"]  # Chroma normalises them for cosines
    np.testing.assert_allclose(stored, predict(DOCUMENTS), atol=1e-6)
    found = collection.query(query_texts=[QUERY], n_results=2)
    cosines = predict(DOCUMENTS) @ predict([QUERY], "retrieval_query")[0]
    distances = dict(zip(found["ids"][0], found["distances"][0], strict=True))
    assert distances == pytest.approx({"parcels": 1 - cosines[0], "refunds": 1 - cosines[1]}, abs=1e-6)


def test_ollamas(apis: str, predict: Predict) -> None:
    check_same(OllamaEmbeddingFunction(apis, MODEL)(DOCUMENTS), predict(DOCUMENTS))
    check_same(OllamaEmbeddingFunction(apis, QUERIES)([QUERY]), predict([QUERY], "retrieval_query"))
    with pytest.raises(ollama.ResponseError, match=r"nomic-embed-text.*embeddinggemma-300m"):
        OllamaEmbeddingFunction(apis, "nomic-embed-text")([QUERY])


def test_teis(apis: str, predict: Predict) -> None:
    check_same(HuggingFaceEmbeddingServer(f"{apis}/embed")(DOCUMENTS), predict(DOCUMENTS))
    queries = HuggingFaceEmbeddingServer(f"{apis}/embed?prompt_name=query")
    check_same(queries([QUERY]), predict([QUERY], "retrieval_query"))
    # The class does not look whether the answer is an error.
    with pytest.raises(ValueError, match="could not convert string to float"):
        HuggingFaceEmbeddingServer(f"{apis}/embed?truncate=false")([LONG])


def test_geminis(apis: str, predict: Predict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "none")
    monkeypatch.setenv("GOOGLE_GEMINI_BASE_URL", apis)
    documents = GoogleGeminiEmbeddingFunction(MODEL, task_type="RETRIEVAL_DOCUMENT", dimension=256)
    queries = GoogleGeminiEmbeddingFunction(MODEL, task_type="RETRIEVAL_QUERY", dimension=256)
    check_same(documents(DOCUMENTS), predict(DOCUMENTS, dimensions=256))
    check_same(queries([QUERY]), predict([QUERY], "retrieval_query", 256))
    with pytest.raises(ValueError, match=r"outputDimensionality.*300"):
        GoogleGeminiEmbeddingFunction(MODEL, dimension=300)([QUERY])
