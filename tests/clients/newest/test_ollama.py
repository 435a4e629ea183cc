"""Ollama's client."""

import numpy as np
import ollama
import pytest

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same

MODEL = "embeddinggemma-300m"


@pytest.fixture(scope="module")
def client(apis: str) -> ollama.Client:
    return ollama.Client(host=apis)


def test_texts_are_documents(client: ollama.Client, predict: Predict) -> None:
    check_same(client.embed(MODEL, DOCUMENTS).embeddings, predict(DOCUMENTS))
    for name in ("embeddinggemma", "embeddinggemma:300m", "embeddinggemma:latest"):
        check_same(client.embed(name, QUERY).embeddings, predict([QUERY]))


def test_the_models_name_chooses_the_task(client: ollama.Client, predict: Predict) -> None:
    check_same(client.embed(f"{MODEL}:retrieval_query", QUERY).embeddings, predict([QUERY], "retrieval_query"))


def test_dimensions_beside_options_for_running_a_model(client: ollama.Client, predict: Predict) -> None:
    vectors = client.embed(MODEL, DOCUMENTS, dimensions=512, keep_alive="5m", options={"num_ctx": 2048}).embeddings
    check_same(vectors, predict(DOCUMENTS, dimensions=512))


def test_a_long_text_is_cut_unless_it_is_to_be_refused(client: ollama.Client, predict: Predict) -> None:
    check_same(client.embed(MODEL, [LONG]).embeddings, predict([LONG]))
    with pytest.raises(ollama.ResponseError, match="2,048"):
        client.embed(MODEL, [LONG], truncate=False)


def test_the_context_cuts_texts(client: ollama.Client, predict: Predict) -> None:
    text = " ".join(f"word{i}" for i in range(300))
    whole, cut = (client.embed(MODEL, [text], options={"num_ctx": tokens}).embeddings for tokens in (2048, 64))
    check_same(whole, predict([text]))
    assert abs(np.array(cut) - whole).max() > 1e-3


def test_the_older_operation(client: ollama.Client, predict: Predict) -> None:
    check_same([client.embeddings(f"{MODEL}:clustering", QUERY).embedding], predict([QUERY], "clustering"))


def test_the_model_is_shown(client: ollama.Client) -> None:
    shown = client.show(MODEL)
    assert shown.capabilities == ["embedding"] and (shown.modelinfo or {})["gemma3.context_length"] == 2048


def test_models_are_listed(client: ollama.Client) -> None:
    names = {model.model for model in client.list().models}
    assert f"{MODEL}:retrieval_query" in names


def test_errors(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match=r"nomic-embed-text.*embeddinggemma-300m") as missing:
        client.embed("nomic-embed-text", QUERY)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match=r"dimensions.*300") as bad:
        client.embed(MODEL, QUERY, dimensions=300)
    assert bad.value.status_code == 400
