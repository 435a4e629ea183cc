"""Each API's way to send the key that the server wants."""

from collections.abc import Callable

import cohere
import ollama
import openai
import pytest
from google import genai
from google.genai import errors, types
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from mteb.models import OpenAIAPIEncodeWrapper

MODEL = "embeddinggemma-300m"


def embed_by_openai(url: str, key: str) -> object:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
    return client.embeddings.create(model=MODEL, input="text")


def embed_by_gemini(url: str, key: str) -> object:
    client = genai.Client(api_key=key, http_options=types.HttpOptions(base_url=url))
    return client.models.embed_content(model=MODEL, contents="text")


def embed_by_cohere(url: str, key: str) -> object:
    return cohere.ClientV2(key, base_url=url).embed(model=MODEL, texts=["text"], input_type="search_query")


def embed_by_ollama(url: str, key: str) -> object:
    return ollama.Client(url, headers={"Authorization": f"Bearer {key}"}).embed(MODEL, "text")


def embed_by_hugging_face(url: str, key: str) -> object:
    return InferenceClient(url, token=key).feature_extraction("text")


@pytest.mark.parametrize(
    ("embed", "error"),
    [
        (embed_by_openai, openai.AuthenticationError),
        (embed_by_gemini, errors.ClientError),
        (embed_by_cohere, cohere.UnauthorizedError),
        (embed_by_ollama, ollama.ResponseError),
        (embed_by_hugging_face, HfHubHTTPError),
    ],
)
def test_only_the_right_key_opens(
    apis_with_key: str, embed: Callable[[str, str], object], error: type[Exception]
) -> None:
    assert embed(apis_with_key, "secret") is not None
    with pytest.raises(error, match="API_KEY"):
        embed(apis_with_key, "wrong")


def test_clients_that_send_the_key_by_an_option(apis_with_key: str) -> None:
    assert TextEmbeddingsInference(MODEL, apis_with_key, auth_token="secret").get_text_embedding("text")
    assert OpenAIAPIEncodeWrapper(apis_with_key, MODEL, "secret", use_chat_template=False)
