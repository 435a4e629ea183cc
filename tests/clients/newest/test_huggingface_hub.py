"""Hugging Face's InferenceClient, which speaks to text-embeddings-inference."""

from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient, get_session
from huggingface_hub.errors import HfHubHTTPError

from tests.clients.support import DOCUMENTS, LONG, QUERY, Predict, check_same


@pytest.fixture(scope="module")
def client(apis: str) -> InferenceClient:
    return InferenceClient(apis)


def test_texts_are_documents(client: InferenceClient, apis: str, predict: Predict) -> None:
    check_same(client.feature_extraction(DOCUMENTS), predict(DOCUMENTS))
    check_same(client.feature_extraction(QUERY), predict([QUERY]))
    check_same(client.feature_extraction(QUERY, model=f"{apis}/embed"), predict([QUERY]))


@pytest.mark.parametrize(
    ("prompt_name", "task"),
    [("query", "retrieval_query"), ("STS", "semantic_similarity"), ("clustering", "clustering")],
)
def test_the_prompts_name_chooses_the_task(
    client: InferenceClient, predict: Predict, prompt_name: str, task: str
) -> None:
    check_same(client.feature_extraction(QUERY, prompt_name=prompt_name), predict([QUERY], task))


def test_dimensions(client: InferenceClient, predict: Predict) -> None:
    vectors = client.feature_extraction(QUERY, dimensions=256)
    check_same(vectors, predict([QUERY], dimensions=256))


def test_a_long_text_is_cut_unless_it_is_to_be_refused(client: InferenceClient, predict: Predict) -> None:
    with pytest.raises(HfHubHTTPError, match="2,048"):
        client.feature_extraction(LONG, truncate=False)
    check_same(client.feature_extraction(LONG), predict([LONG]))
    check_same(client.feature_extraction(LONG, truncate=True, truncation_direction="right"), predict([LONG]))


def test_parameters_beside_the_texts_or_in_an_object_of_their_own(
    client: InferenceClient, apis: str, predict: Predict
) -> None:
    """The client has sent them in both ways, and Hugging Face's client for JavaScript sends an object."""
    parameters: dict[str, Any] = {"prompt_name": "query", "normalize": False, "truncate": True, "dimensions": 256}
    vectors = client.feature_extraction(QUERY, **parameters)
    lengths = np.linalg.norm(vectors, axis=1)
    assert abs(lengths - 1).max() > 1e-3
    np.testing.assert_allclose(vectors / lengths, predict([QUERY], "retrieval_query", 256), atol=1e-6)
    nested = get_session().post(apis, json={"inputs": QUERY, "parameters": parameters})
    np.testing.assert_array_equal(np.array(nested.json(), np.float32), vectors)


def test_sentence_similarity(client: InferenceClient, apis: str, predict: Predict) -> None:
    source, *others = predict([QUERY, *DOCUMENTS], "semantic_similarity")
    for model in (apis, f"{apis}/similarity"):
        scores = client.sentence_similarity(QUERY, other_sentences=DOCUMENTS, model=model)
        np.testing.assert_allclose(scores, np.array(others) @ source, atol=1e-6)


def test_a_bad_request_names_the_field(client: InferenceClient, predict: Predict) -> None:
    with pytest.raises(HfHubHTTPError, match=r"prompt_name.*search"):
        client.feature_extraction(QUERY, prompt_name="search")
    check_same(client.feature_extraction(QUERY, encoding_format="float"), predict([QUERY]))
    with pytest.raises(HfHubHTTPError, match=r"encoding_format.*base64"):
        client.feature_extraction(QUERY, encoding_format="base64")
    with pytest.raises(HfHubHTTPError, match=r"dimensions.*300"):
        client.feature_extraction(QUERY, dimensions=300)
