"""EmbeddingGemma 2 through the APIs: its names, its limits, its prompts; and media, which no generation embeds here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service import Service
from tests.api.conftest import client_of
from tests.support.vectors import unit


@pytest.fixture(scope="module")
def second(second_weights: Path) -> Iterator[tuple[Service, httpx.Client]]:
    """A service of EmbeddingGemma 2, and a client of its APIs."""
    service = Service(str(second_weights))
    service.start()
    with client_of(service) as client:
        yield service, client
    service.close()


def test_it_has_its_own_names_and_limit(second: tuple[Service, httpx.Client]) -> None:
    service, client = second
    models = client.get("/v1/models").json()["data"]
    assert models[0]["id"] == "embeddinggemma-2" and models[0]["max_model_len"] == 8_192
    assert models[1]["id"] == "embeddinggemma-2:retrieval_document"
    info = client.get("/info").json()
    assert info["served_model_name"] == "embeddinggemma-2" and info["max_input_length"] == 8_192
    for name in ("embeddinggemma-2", "google/embeddinggemma-2", "embeddinggemma-2:clustering"):
        answer = client.post("/v1/embeddings", json={"input": "a", "model": name})
        assert answer.status_code == 200 and answer.json()["model"] == service.model
    assert client.post("/v1/embeddings", json={"input": "a"}).status_code == 200
    shown = client.post("/api/show", json={"model": "embeddinggemma-2"}).json()
    assert shown["model_info"]["embeddinggemma2.context_length"] == 8_192
    refused = client.post("/v1/embeddings", json={"input": "a", "model": "embeddinggemma-300m"})
    assert refused.status_code == 404 and "use 'embeddinggemma-2'" in refused.json()["error"]["message"]


def embedded(client: httpx.Client, **body: Any) -> np.ndarray:
    answer = client.post("/v1/embeddings", json=body)
    assert answer.status_code == 200, answer.text
    return np.array([item["embedding"] for item in answer.json()["data"]])


def test_summaries_are_compared_as_sentences_are(second: tuple[Service, httpx.Client]) -> None:
    _, client = second
    vectors = [embedded(client, input="rain", task=task) for task in ("summarization", "semantic_similarity")]
    assert np.array_equal(vectors[0], vectors[1])
    prompted = embedded(client, input="task: sentence similarity | query: rain", task="summarization")
    assert np.array_equal(vectors[0], prompted)
    tei = client.post("/embed", json={"inputs": "rain", "prompt_name": "SentenceSimilarity"}).json()
    assert np.allclose(vectors[0], tei, atol=1e-6)


def test_late_chunking_reads_8192_tokens_at_once(second: tuple[Service, httpx.Client]) -> None:
    """Each chunk sees the whole text, though that is longer than version 1 reads."""
    _, client = second
    text, end = "the sea is calm today; " * 700, "the harbour is full of boats"
    whole = embedded(client, input=text + end, chunk=1_000, late_chunking=True)
    other = embedded(client, input=text + "nothing at all happens", chunk=1_000, late_chunking=True)
    assert len(whole) > 3 and len(whole) == len(other)
    assert (unit(whole)[0] @ unit(other)[0]) < 1 - 1e-9  # the first chunk is some 4,000 tokens away from the end


MEDIA: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/embeddings", {"input": [{"type": "image_url", "image_url": {"url": "data:"}}]}, "input[0]: a text is"),
    ("/v1/embeddings", {"input": [{"image": "data:"}, "a"]}, "input[0]: a text is a string here; only texts"),
    ("/v1/embeddings", {"input": "a", "image": "data:"}, "image: only texts are"),
    (
        "/v1/models/embeddinggemma-2:embedContent",
        {"content": {"parts": [{"inlineData": {}}]}},
        "inlineData: only texts",
    ),
    ("/v1/models/embeddinggemma-2:embedContent", {"content": {"parts": [{"fileData": {}}]}}, "fileData: only texts"),
    ("/v1/models/embeddinggemma-2:embedContent", {"content": {"parts": [{"text": "a"}] * 2}}, "there are 2; give one"),
    ("/v2/embed", {"images": ["data:"]}, "images: only texts are"),
    ("/v2/embed", {"inputs": [{"content": [{"type": "image_url", "image_url": {}}]}]}, "content[0]: only texts are"),
    ("/embed", {"inputs": [{"image": "data:"}]}, "inputs[0]: a text is a string here; only texts"),
    ("/api/embed", {"model": "embeddinggemma-2", "input": "a", "images": ["x"]}, "images: only texts are"),
]


@pytest.mark.parametrize(("path", "body", "words"), MEDIA, ids=[f"{i}" for i in range(len(MEDIA))])
def test_media_are_refused_in_words(
    second: tuple[Service, httpx.Client], path: str, body: dict[str, Any], words: str
) -> None:
    answer = second[1].post(path, json=body)
    assert answer.status_code in (400, 422) and words in answer.text
    assert "no model for images, sounds or videos is served" in answer.text or "give one" in answer.text
