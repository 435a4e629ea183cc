"""LangChain's classes for OpenAI and Ollama, also by LangChain's own tests of such classes."""

from typing import Any, cast

import openai
import pytest
from langchain_core.embeddings import Embeddings
from langchain_ollama import OllamaEmbeddings
from langchain_openai import OpenAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from ollama import ResponseError
from pydantic import ValidationError

from tests.clients.examples import class_of
from tests.clients.support import DOCUMENTS, LONG, QUERY, Apis, Predict, check_same

MODEL = "embeddinggemma-300m"
QUERIES = f"{MODEL}:retrieval_query"


class OpenAIApi(Apis):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {
            "base_url": f"{self.url}/v1",
            "api_key": "none",
            "model": MODEL,
            "check_embedding_ctx_length": False,
            "max_retries": 0,
        }


class TestOpenAIUnit(OpenAIApi, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        environment = {"OPENAI_API_KEY": "none", "OPENAI_API_BASE": f"{self.url}/v1"}
        return environment, {"model": MODEL}, {"openai_api_key": "none", "openai_api_base": f"{self.url}/v1"}


class TestOpenAIIntegration(OpenAIApi, EmbeddingsIntegrationTests): ...


class TestOpenAI(OpenAIApi):
    def test_an_object_for_documents_and_one_for_queries(self, predict: Predict) -> None:
        documents = OpenAIEmbeddings(**self.embedding_model_params)
        queries = OpenAIEmbeddings(**self.embedding_model_params | {"model": QUERIES})
        check_same(documents.embed_documents(DOCUMENTS), predict(DOCUMENTS))
        check_same(queries.embed_query(QUERY), predict([QUERY], "retrieval_query")[0])

    def test_a_field_chooses_the_task_and_dimensions_the_size(self, predict: Predict) -> None:
        options = {"dimensions": 256, "model_kwargs": {"extra_body": {"task": "clustering"}}}
        embeddings = OpenAIEmbeddings(**self.embedding_model_params | options)
        check_same(embeddings.embed_documents(DOCUMENTS), predict(DOCUMENTS, "clustering", 256))

    def test_errors(self) -> None:
        with pytest.raises(openai.NotFoundError, match=r"text-embedding-3-small.*embeddinggemma-300m"):
            OpenAIEmbeddings(**self.embedding_model_params | {"model": "text-embedding-3-small"}).embed_query(QUERY)
        with pytest.raises(openai.BadRequestError, match="2,048"):
            OpenAIEmbeddings(**self.embedding_model_params).embed_query(LONG)


class OurApi(Apis):
    """The class in docs/clients.md, whose retriever needs no second object."""

    heading: str

    @property
    def embeddings_class(self) -> type[Embeddings]:
        return cast(type[Embeddings], class_of(self.heading))


class OurOpenAIApi(OurApi):
    heading = "LangChain with OpenAI's API"

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}


class OurOllamaApi(OurApi):
    heading = "LangChain with Ollama's API"

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url}


class TestOurOpenAIUnit(OurOpenAIApi, EmbeddingsUnitTests): ...


class TestOurOpenAIIntegration(OurOpenAIApi, EmbeddingsIntegrationTests): ...


class TestOurOllamaUnit(OurOllamaApi, EmbeddingsUnitTests): ...


class TestOurOllamaIntegration(OurOllamaApi, EmbeddingsIntegrationTests): ...


@pytest.mark.parametrize("heading", ["LangChain with OpenAI's API", "LangChain with Ollama's API"])
async def test_the_class_of_the_docs_embeds_queries_as_such(heading: str, apis: str, predict: Predict) -> None:
    options = {"base_url": f"{apis}/v1", "api_key": "none"} if "OpenAI" in heading else {"base_url": apis}
    embeddings = class_of(heading)(**options)
    documents, query = predict(DOCUMENTS), predict([QUERY], "retrieval_query")[0]
    check_same(embeddings.embed_documents(DOCUMENTS), documents)
    check_same(await embeddings.aembed_documents(DOCUMENTS), documents)
    check_same(embeddings.embed_query(QUERY), query)
    check_same(await embeddings.aembed_query(QUERY), query)


class OllamaApi(Apis):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OllamaEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "model": MODEL}


class TestOllamaUnit(OllamaApi, EmbeddingsUnitTests): ...


class TestOllamaIntegration(OllamaApi, EmbeddingsIntegrationTests): ...


class TestOllama(OllamaApi):
    def test_an_object_for_documents_and_one_for_queries(self, predict: Predict) -> None:
        for model, task in ((MODEL, "retrieval_document"), (QUERIES, "retrieval_query")):
            embeddings = OllamaEmbeddings(base_url=self.url, model=model, validate_model_on_init=True, dimensions=256)
            check_same(embeddings.embed_documents(DOCUMENTS), predict(DOCUMENTS, task, 256))
            check_same(embeddings.embed_query(QUERY), predict([QUERY], task, 256)[0])

    def test_errors(self) -> None:
        with pytest.raises(ResponseError, match=r"nomic-embed-text.*embeddinggemma-300m"):
            OllamaEmbeddings(base_url=self.url, model="nomic-embed-text").embed_query(QUERY)
        with pytest.raises(ValidationError, match=r"nomic-embed-text.*embeddinggemma-300m"):
            OllamaEmbeddings(base_url=self.url, model="nomic-embed-text", validate_model_on_init=True)
