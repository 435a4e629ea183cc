"""The other APIs in the process of Cog's server: the same engine, queue and cache, and the same vectors."""

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

import encoding
from container.server import Server, ServerError, free_port, running_server
from tests.support.servers import tree

TEXTS = ["Which planet is red?", "é 漢字 🙂", "a\n\nb", "word " * 3000, *(f"text number {i}" for i in range(20))]


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Server, httpx.Client]]:
    """Cog's server, and a client of the other APIs' port."""
    port = free_port()
    with (
        running_server("small", settings={"API_PORT": str(port)}) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        yield server, client


def embedded(client: httpx.Client, dim: int) -> dict[str, np.ndarray]:
    """Return the texts' vectors as queries, float32 [n, dim], through every API."""

    def post(path: str, **body: Any) -> Any:
        answer = client.post(path, json=body)
        assert answer.status_code == 200 and answer.headers["x-truncated"] == "3", answer.text
        return answer.json()

    name = "embeddinggemma-300m"
    plain = post("/v1/embeddings", input=TEXTS, model=f"{name}:retrieval_query", dimensions=dim, truncate=True)
    coded = post(
        "/v1/embeddings", input=TEXTS, task="retrieval_query", dimensions=dim, truncate=True, encoding_format="base64"
    )
    requests = [
        {"content": {"parts": [{"text": text}]}, "taskType": "RETRIEVAL_QUERY", "outputDimensionality": dim}
        for text in TEXTS
    ]
    gemini = post(f"/v1beta/models/{name}:batchEmbedContents", requests=requests)
    tei = post("/embed", inputs=TEXTS, prompt_name="query", dimensions=dim, truncate=True)
    ollama = post("/api/embed", model=f"{name}:retrieval_query", input=TEXTS, dimensions=dim)
    cohere = post("/v2/embed", model=name, texts=TEXTS, input_type="search_query", output_dimension=dim)
    rows = {
        "OpenAI": [each["embedding"] for each in plain["data"]],
        "Gemini": [each["values"] for each in gemini["embeddings"]],
        "TEI": tei,
        "Ollama": ollama["embeddings"],
        "Cohere": cohere["embeddings"]["float"],
    }
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in coded["data"]]
    return {api: np.array(numbers, "f4") for api, numbers in rows.items()} | {"OpenAI, base64": np.stack(decoded)}


@pytest.mark.parametrize("dim", [768, 128])
def test_every_api_gives_the_vectors_of_predictions_to_the_last_bit(
    both: tuple[Server, httpx.Client], dim: int
) -> None:
    server, client = both
    answer = server.predict({"texts": TEXTS, "task": "retrieval_query", "embedding_dim": dim})
    vectors = encoding.decode(answer)
    assert vectors.shape == (len(TEXTS), dim)
    for api, others in embedded(client, dim).items():
        np.testing.assert_array_equal(others, vectors, err_msg=api, strict=True)
    assert client.get("/ready").headers["x-model"] == answer["output"]["model"]


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_chunks_of_every_api_are_those_of_predictions(both: tuple[Server, httpx.Client], late: bool) -> None:
    server, client = both
    texts = ["short", "é 漢字 🙂 rose and fell. " * 900]  # more tokens than the model reads at once
    fields = {"chunk": 300, "late_chunking": late}
    answer = server.predict({"texts": texts, **fields})
    vectors, ranges = encoding.decode(answer), answer["output"]["chunks"]
    asked: dict[str, dict[str, Any]] = {
        "/v1/embeddings": {"input": texts, **fields},
        "/api/embed": {"model": "embeddinggemma", "input": texts, **fields},
        "/v2/embed": {"texts": texts, "embedding_types": ["float"], **fields},
    }
    for path, body in asked.items():
        found = client.post(path, json=body).json()
        rows: Any = found.get("data") or found["embeddings"]
        if path == "/v1/embeddings":
            rows = [row["embedding"] for row in rows]
        if path == "/v2/embed":
            rows = rows["float"]
        np.testing.assert_array_equal(np.array(rows, "f4"), vectors, err_msg=path, strict=True)
        assert found["chunks"] == ranges, path
    cut = [[texts[i][start:end] for owner, start, end in ranges if owner == i] for i in range(len(texts))]
    assert ["".join(of_text) for of_text in cut] == texts
    if late:
        given = client.post("/v1/contextualizedembeddings", json={"inputs": cut}).json()["data"]
        rows = [row["embedding"] for document in given for row in document["data"]]
        np.testing.assert_array_equal(np.array(rows, "f4"), vectors, strict=True)
        jina = client.post("/v1/embeddings", json={"input": cut[1], "late_chunking": True}).json()["data"]
        np.testing.assert_array_equal(np.array([row["embedding"] for row in jina], "f4"), vectors[1:], strict=True)


def test_both_share_the_cache_and_the_metrics(both: tuple[Server, httpx.Client]) -> None:
    server, client = both
    assert server.predict({"text": "shared"})["metrics"]["cache_hits"] == 0
    assert client.post("/embed", json={"inputs": "shared"}).status_code == 200
    assert server.predict({"text": "shared"})["metrics"]["cache_hits"] == 1
    lines = client.get("/metrics").text.splitlines()
    hits = next(float(line.split()[1]) for line in lines if line.startswith("te_embed_cache_hits_total"))
    assert hits >= 2


def test_a_port_that_is_taken_fails_the_setup_in_a_sentence(both: tuple[Server, httpx.Client]) -> None:
    taken = both[1].base_url.port
    message = rf"port {taken} of 127\.0\.0\.1 cannot be listened on .*; choose a free port with API_PORT"
    with pytest.raises(ServerError, match=message), running_server("small", settings={"API_PORT": str(taken)}):
        pass


def test_without_the_setting_only_cogs_port_is_open(server: Server, both: tuple[Server, httpx.Client]) -> None:
    def ports(running: Server) -> set[int]:
        """Return the ports but for that between the front and Cog's server, which has an address of its own."""
        listening = [
            connection.laddr.port
            for process in tree(running.process.pid)
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr.ip in ("127.0.0.1", "0.0.0.0")
        ]
        return set(listening)

    assert ports(server) == {httpx.URL(server.url).port}
    assert ports(both[0]) == {httpx.URL(both[0].url).port, both[1].base_url.port}
