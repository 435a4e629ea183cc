"""LangChain's classes for Gemini, Cohere and Hugging Face, also by LangChain's own tests of such classes."""

from typing import Any, cast

import cohere
import pytest
from huggingface_hub.errors import HfHubHTTPError
from langchain_cohere import CohereEmbeddings
from langchain_core.embeddings import Embeddings
from langchain_google_genai import GoogleGenerativeAIEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from tests.clients.examples import class_of
from tests.clients.support import DOCUMENTS, LONG, ONE_LINE_DOCUMENTS, QUERY, Apis, Predict, check_same

MODEL = "embeddinggemma-300m"


class GeminiApi(Apis):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return GoogleGenerativeAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"base_url": self.url, "google_api_key": "none", "model": MODEL}


class TestGeminiUnit(GeminiApi, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"GOOGLE_API_KEY": "none"}, {"base_url": self.url, "model": MODEL}, {"google_api_key": "none"}


class TestGeminiIntegration(GeminiApi, EmbeddingsIntegrationTests): ...


class TestGemini(GeminiApi):
    def test_documents_and_queries_have_their_tasks(self, predict: Predict) -> None:
        embeddings = GoogleGenerativeAIEmbeddings(**self.embedding_model_params, output_dimensionality=256)
        check_same(embeddings.embed_documents(DOCUMENTS), predict(DOCUMENTS, dimensions=256))
        check_same(embeddings.embed_query(QUERY), predict([QUERY], "retrieval_query", 256)[0])

    def test_a_task_in_the_models_name_must_be_the_one_that_the_class_sends(self, predict: Predict) -> None:
        named = GoogleGenerativeAIEmbeddings(**self.embedding_model_params | {"model": f"{MODEL}:retrieval_query"})
        check_same(named.embed_query(QUERY), predict([QUERY], "retrieval_query")[0])
        with pytest.raises(Exception, match=r"RETRIEVAL_DOCUMENT.*the model's name without one"):
            named.embed_documents(DOCUMENTS)

    def test_errors(self) -> None:
        for options, message in (
            ({"model": "gemini-embedding-001"}, "gemini-embedding-001.*embeddinggemma-300m"),
            ({"output_dimensionality": 300}, "outputDimensionality.*300"),
        ):
            embeddings = GoogleGenerativeAIEmbeddings(**self.embedding_model_params | options)
            with pytest.raises(Exception, match=message) as caught:
                embeddings.embed_query(QUERY)
            assert type(caught.value).__name__ == "GoogleGenerativeAIError"


class CohereApi(Apis):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return CohereEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # It retries bad requests, too, after four seconds.
        return {"base_url": self.url, "cohere_api_key": "none", "model": MODEL, "max_retries": 1}


class TestCohereUnit(CohereApi, EmbeddingsUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"COHERE_API_KEY": "none"}, {"base_url": self.url, "model": MODEL}, {"cohere_api_key": "none"}


class TestCohereIntegration(CohereApi, EmbeddingsIntegrationTests): ...


class TestCohere(CohereApi):
    def test_documents_and_queries_have_their_tasks(self, predict: Predict) -> None:
        embeddings = CohereEmbeddings(**self.embedding_model_params)
        check_same(embeddings.embed_documents([*DOCUMENTS, LONG]), predict([*DOCUMENTS, LONG]))
        check_same(embeddings.embed_query(QUERY), predict([QUERY], "retrieval_query")[0])

    def test_a_task_in_the_models_name_must_be_the_one_that_the_class_sends(self, predict: Predict) -> None:
        named = CohereEmbeddings(**self.embedding_model_params | {"model": f"{MODEL}:retrieval_query"})
        check_same(named.embed_query(QUERY), predict([QUERY], "retrieval_query")[0])
        with pytest.raises(cohere.BadRequestError, match=r"search_document.*the model's name without one"):
            named.embed_documents(DOCUMENTS)

    def test_errors(self) -> None:
        with pytest.raises(cohere.NotFoundError, match=r"embed-v4.0.*embeddinggemma-300m"):
            CohereEmbeddings(**self.embedding_model_params | {"model": "embed-v4.0"}).embed_query(QUERY)
        with pytest.raises(cohere.BadRequestError, match="2,048"):
            CohereEmbeddings(**self.embedding_model_params, truncate="NONE").embed_query(LONG)


# LangChain's class refuses a URL as `model` but takes clients.
TeiEmbeddings = class_of("LangChain with TEI's API")


class HuggingFaceApi(Apis):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return cast(type[Embeddings], TeiEmbeddings)

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"url": self.url}


class TestHuggingFaceUnit(HuggingFaceApi, EmbeddingsUnitTests): ...


class TestHuggingFaceIntegration(HuggingFaceApi, EmbeddingsIntegrationTests): ...


class TestHuggingFace(HuggingFaceApi):
    async def test_the_class_of_the_docs_embeds_queries_as_such(self, predict: Predict) -> None:
        embeddings = TeiEmbeddings(self.url)
        documents, query = predict(ONE_LINE_DOCUMENTS), predict([QUERY], "retrieval_query")[0]
        check_same(embeddings.embed_documents(DOCUMENTS), documents)
        check_same(await embeddings.aembed_documents(DOCUMENTS), documents)
        check_same(embeddings.embed_query(QUERY), query)
        check_same(await embeddings.aembed_query(QUERY), query)

    def test_errors(self) -> None:
        unknown = TeiEmbeddings(self.url).model_copy(update={"model_kwargs": {"prompt_name": "search"}})
        with pytest.raises(HfHubHTTPError, match=r"prompt_name.*search"):
            unknown.embed_documents([QUERY])
