"""What Weaviate's text2vec-transformers asks of its inference container."""

from typing import Any

import httpx
import numpy as np
import pytest

from service import Service
from tests.api.conftest import Expected
from tests.api.test_metrics import samples

# What Weaviate's client sends around a text: its struct has the fields of the answer, too.
SENT: dict[str, Any] = {"dims": 0, "vector": None, "error": ""}
TASKS = {"passage": "retrieval_document", "query": "retrieval_query"}
LONG = "word " * 3000


def post(client: httpx.Client, base: str, text: str, **config: Any) -> httpx.Response:
    config = {"pooling_strategy": "masked_mean"} | config
    return client.post(f"{base}/vectors", json={"text": text, "config": config} | SENT)


def vector_of(answer: httpx.Response) -> np.ndarray:
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {"text", "vector", "dim"} and len(body["vector"]) == body["dim"]
    return np.array(body["vector"], "f4")


@pytest.mark.parametrize("kind", TASKS)
def test_the_url_or_the_request_says_whether_it_is_a_query(client: httpx.Client, expected: Expected, kind: str) -> None:
    [wanted] = expected("one", task=TASKS[kind])
    of_url = f"/weaviate/{kind}"
    for answer in (
        post(client, of_url, "one"),
        post(client, of_url, "one", task_type=kind),
        post(client, "/weaviate", "one", task_type=kind),
        client.post(f"{of_url}/vectors", json={"text": "one"}),
    ):
        np.testing.assert_array_equal(vector_of(answer), wanted, strict=True)
    assert answer.json()["text"] == "one"
    [small] = expected("one", task=TASKS[kind], embedding_dim=256)
    np.testing.assert_array_equal(vector_of(post(client, of_url, "one", dimensions=256)), small, strict=True)


def test_a_long_text_is_cut_and_counted(client: httpx.Client, expected: Expected) -> None:
    before = samples(client)["te_embed_truncated_total"]
    answer = post(client, "/weaviate/passage", LONG)
    assert samples(client)["te_embed_truncated_total"] == before + 1
    np.testing.assert_array_equal(vector_of(answer), expected(LONG)[0], strict=True)
    assert answer.headers["x-truncated"] == "0" and answer.json()["text"] == LONG


@pytest.mark.parametrize("base", ["/weaviate", "/weaviate/passage", "/weaviate/query"])
def test_what_weaviate_asks_when_it_starts(client: httpx.Client, service: Service, base: str) -> None:
    for state in ("ready", "live"):
        assert client.get(f"{base}/.well-known/{state}").json() == {"status": "ready"}
    facts = {"name": "embeddinggemma-300m", "weights": service.model, "dimensions": [768, 512, 256, 128]}
    assert client.get(f"{base}/meta").json() == {"model": facts}


@pytest.mark.parametrize(
    ("base", "body", "message"),
    [
        ("/query", {}, "text: it is missing"),
        ("/query", {"text": " "}, "text: the text is empty or blank"),
        ("/query", {"text": ["one"]}, "text: expected str, got array"),
        ("/query", {"text": "one", "task": "clustering"}, "task: this API has no such field; leave it out"),
        ("/query", {"text": "one", "chunk": 64}, "chunk: this API has no such field; only /v1/embeddings, /v1/context"),
        (
            "/query",
            {"text": "one", "config": {"pooling": "cls"}},
            "config.pooling: this API has no such field; leave it out",
        ),
        ("/query", {"text": "one", "config": {"dimensions": 100}}, "config.dimensions: 100 is unknown; use one of 768"),
        (
            "/query",
            {"text": "one", "config": {"pooling_strategy": "cls"}},
            "config.pooling_strategy: 'cls' is unknown; use one of masked_mean",
        ),
        (
            "",
            {"text": "one", "config": {"task_type": "x"}},
            "config.task_type: 'x' is unknown; use one of passage, que",
        ),
        (
            "/passage",
            {"text": "one", "config": {"task_type": "query"}},
            "config.task_type: 'query' contradicts the URL, which is '/weaviate/passage'; give one of the two",
        ),
        (
            "",
            {"text": "one"},
            "config.task_type: it is missing, as in Weaviate before 1.31; set TRANSFORMERS_PASSAGE_I",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_errors_name_field_problem_and_remedy(
    client: httpx.Client, base: str, body: dict[str, Any], message: str
) -> None:
    refused = client.post(f"/weaviate{base}/vectors", json=body | SENT)
    assert refused.status_code == 400 and refused.json().keys() == {"error"}
    assert refused.json()["error"].startswith(message)
