"""Texts that begin with one of the model's prompts, through every operation that embeds."""

import json

import httpx
import pytest

from tests.api.test_metrics import samples
from tests.api.test_openapi import BODIES

OWN = "task: search result | query: one"
OF_A_DOCUMENT = "title: none | text: one"


@pytest.mark.parametrize("path", sorted(BODIES.keys() - {"/tokenize", "/api/show"}))
def test_they_get_no_second_prompt_and_are_told_and_counted(client: httpx.Client, path: str) -> None:
    url = path.replace("{model}", "embeddinggemma-300m")
    body = json.dumps(BODIES[path])
    before = samples(client)["te_embed_prompted_total"]
    own = OF_A_DOCUMENT if "passage" in path else OWN
    answer = client.post(url, content=body.replace('"one"', f'"{own}"'))
    assert answer.status_code == 200, answer.text
    prompted = 2 if "contextualized" in path else 1  # all chunks of that document
    assert answer.headers["x-prompted"] == ("0-1" if prompted == 2 else "0")
    assert samples(client)["te_embed_prompted_total"] == before + prompted
    assert "x-prompted" not in client.post(url, content=body).headers


def test_the_vector_is_that_of_the_prompts_task(client: httpx.Client) -> None:
    own = client.post("/embed", json={"inputs": OWN}).json()
    assert own == client.post("/embed", json={"inputs": "one", "prompt_name": "query"}).json()


def test_another_task_is_refused(client: httpx.Client) -> None:
    answer = client.post("/embed", json={"inputs": ["one", OWN], "prompt_name": "STS"})
    assert answer.status_code == 422
    assert "inputs[1]: begins with the prompt of task 'retrieval_query', and the task is" in answer.json()["error"]
