"""The programs that the page writes give the vectors that it shows, and the record has every call."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from container.make_openapi import ROOT
from tests.api.conftest import Expected
from tests.support.browser import Page

QUERY = 'What\'s "new" in `$HOME`?\\n'
# Stands where the client's package would: prints what it is called with.
CLIENT = """import json
class OpenAI:
    def __init__(self, base_url, api_key):
        self.url, self.embeddings = base_url, self
    def create(self, extra_body, **fields):
        print(json.dumps([self.url, {**fields, **extra_body}]))
        raise SystemExit
def run(model, input):
    print(json.dumps([model, input]))
    raise SystemExit
"""


def program(page: Page, language: str) -> str:
    page.fill(query=QUERY, tab="code", language=language, dims=256, precision="int8", queryTask="clustering")
    return page.texts("#panel-code pre")[0]


def vectors(answer: str) -> np.ndarray:
    return np.array([each["embedding"] for each in json.loads(answer)["data"]], np.int8)


@pytest.fixture
def wanted(expected: Expected) -> np.ndarray:
    return expected(QUERY, task="clustering", embedding_dim=256, precision="int8")


def test_curl_and_javascript_run_as_they_are(page: Page, wanted: np.ndarray) -> None:
    script = f"{program(page, 'javascript')}; console.log(JSON.stringify({{data}}))"
    commands = {
        "curl": ["bash", "-c", program(page, "curl").replace("curl ", "curl -s ", 1)],
        "node": ["node", "--input-type=module", "-e", script],
    }
    for tool, command in commands.items():
        if shutil.which(tool):
            ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
            np.testing.assert_array_equal(vectors(ended.stdout), wanted, err_msg=ended.stderr)


def called(source: str, package: str, folder: Path) -> tuple[str, dict[str, object]]:
    """Return where a Python program sends what, by the package that it imports."""
    (folder / f"{package}.py").write_text(CLIENT, encoding="utf-8")
    ended = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, timeout=60)
    url, body = json.loads(ended.stdout)
    return url, body


def test_python_sends_what_gives_these_vectors(page: Page, wanted: np.ndarray, tmp_path: Path) -> None:
    url, body = called(program(page, "openai"), "openai", tmp_path)
    np.testing.assert_array_equal(vectors(httpx.post(f"{url}/embeddings", json=body).text), wanted)
    _, inputs = called(program(page, "replicate"), "replicate", tmp_path)
    schemas = json.loads((ROOT / "container" / "openapi.json").read_text(encoding="utf-8"))["components"]["schemas"]
    assert inputs.keys() <= schemas["Input"]["properties"].keys()
    assert inputs == {"texts": [QUERY], "task": "clustering", "embedding_dim": 256, "precision": "int8",
                      "truncate": "end", "output_format": "vectors"}  # fmt: skip


def test_every_call_is_in_the_record_with_its_tokens(page: Page, client: httpx.Client) -> None:
    page.tab("code")
    texts = [line.partition("\t")[0] for line in page.find("#docs").get_property("value").split("\n")]
    body = {"input": texts, "model": "embeddinggemma-300m"}
    tokens = client.post("/v1/embeddings", json=body).json()["usage"]["total_tokens"]
    rows = [" ".join(page.texts(f".calls tbody tr:nth-child({i}) :is(th, td)")) for i in (1, 2)]
    assert rows[0].startswith("POST /v1/embeddings 1 ") and rows[1].startswith(f"POST /v1/embeddings 12 {tokens} ")
