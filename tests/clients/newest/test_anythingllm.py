"""What AnythingLLM does with Ollama's API: it looks whether the server is there, then embeds chunks one by one."""

import urllib.error
import urllib.request

import ollama
import pytest

from tests.clients.conftest import DIRECTLY
from tests.clients.support import DOCUMENTS, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_server_is_there_also_for_a_look_without_the_key(apis: str, apis_with_key: str, method: str) -> None:
    for url in (apis, f"{apis}/", apis_with_key):
        with DIRECTLY.open(urllib.request.Request(url, method=method)) as answer:
            assert answer.status == 200
            assert answer.read() == (b"Ollama is running" if method == "GET" else b"")


def test_chunks_are_embedded_with_the_context_that_the_user_set(apis: str, predict: Predict) -> None:
    client = ollama.Client(host=apis)
    for text in [*DOCUMENTS, QUERY]:
        answer = client.embed(model=MODEL, input=[text], options={"num_ctx": 1000})
        check_same(answer.embeddings, predict([text]))


def test_the_key_is_sent_with_the_texts(apis_with_key: str) -> None:
    client = ollama.Client(host=apis_with_key, headers={"Authorization": "Bearer secret"})
    assert len(client.embed(model=MODEL, input=DOCUMENTS, options={"num_ctx": 8192}).embeddings) == 2
    with pytest.raises(ollama.ResponseError, match="API_KEY"):
        ollama.Client(host=apis_with_key).embed(model=MODEL, input=DOCUMENTS)
