"""What the README shows: the commands' output is what they print, and it stays short."""

import base64
import json
import re

import httpx
import numpy as np

from container.make_openapi import ROOT
from container.server import Server

README = (ROOT / "README.md").read_text(encoding="utf-8")
CONSOLE = dict(re.findall(r"```console\n.*?(make \w+|curl)[^\n]*\n(\{.*?)```", README, re.DOTALL))
# The small checkpoint's components are below 1; in bfloat16 they differ by less than this.
SMALL = 0.01


def first_numbers(embedding: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(embedding[:64]), "<f4")


def test_the_prediction_is_what_the_server_answers(server: Server) -> None:
    answer = server.predict({"text": "What is the meaning of life?"})["output"]
    shown = dict(re.findall(r'"(\w+)": ("[^"]*"|\[[^\]]*\])', CONSOLE["make predict"]))
    assert shown.keys() >= {"embedding", "model", "shape", "token_counts"}
    for name in ("shape", "token_counts"):
        assert json.loads(shown[name]) == answer[name]
    assert json.loads(shown["model"]).partition("+")[0] == answer["model"].partition("+")[0]
    np.testing.assert_allclose(
        first_numbers(json.loads(shown["embedding"])), first_numbers(answer["embedding"]), atol=SMALL
    )


def test_the_vector_is_what_openai_s_api_answers(client: httpx.Client) -> None:
    body, url = re.findall(r"curl localhost:8080(\S+) -d '(.*)'", README)[0][::-1]
    answer = client.post(url, json=json.loads(body)).json()
    shown = CONSOLE["curl"]
    numbers = json.loads(re.findall(r'"embedding":(\[[\d.,-]*),\.\.\.\]', shown)[0] + "]")
    np.testing.assert_allclose(answer["data"][0]["embedding"][: len(numbers)], numbers, atol=SMALL)
    names = re.findall(r'"(\w+)":', shown)
    assert names == re.findall(r'"(\w+)":', json.dumps(answer))[: len(names)]


def test_a_newcomer_reads_it_in_some_minutes() -> None:
    assert README.count("\n") <= 130
