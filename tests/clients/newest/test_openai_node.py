"""OpenAI's client for JavaScript, which asks for base64 and decodes whatever comes as such."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.clients.support import DOCUMENTS, QUERY, Predict, check_same

NODE = Path(__file__).resolve().parents[1] / "node"
MODEL = "embeddinggemma-300m"


def embed(apis: str, **options: Any) -> Any:
    """Return the vectors of one request, or the class and message of its error."""
    node = shutil.which("node")
    assert node and (NODE / "node_modules").exists(), "install Node.js, and its client with make test-clients"
    result = subprocess.run(
        [node, "embed.mjs", apis, json.dumps(options)], cwd=NODE, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_texts_are_documents(apis: str, predict: Predict) -> None:
    check_same(embed(apis, model=MODEL, input=DOCUMENTS), predict(DOCUMENTS))
    check_same(embed(apis, model=MODEL, input=DOCUMENTS, encoding_format="float"), predict(DOCUMENTS))


def test_the_models_name_or_a_field_chooses_the_task(apis: str, predict: Predict) -> None:
    query = predict([QUERY], "retrieval_query", 256)
    check_same(embed(apis, model=f"{MODEL}:retrieval_query", input=QUERY, dimensions=256), query)
    check_same(embed(apis, model=MODEL, input=QUERY, task="retrieval_query", dimensions=256), query)


def test_another_precision_comes_as_numbers_or_not_at_all(apis: str) -> None:
    bits = embed(apis, model=MODEL, input=QUERY, encoding_format="float", output_dtype="ubinary")
    assert len(bits[0]) == 96 and all(isinstance(each, int) for each in bits[0])
    assert "send encoding_format 'float'" in embed(apis, model=MODEL, input=QUERY, output_dtype="int8")["message"]


def test_a_bad_request_names_the_field(apis: str) -> None:
    error = embed(apis, model=MODEL, input=QUERY, dimensions=300)
    assert error["class"] == "BadRequestError" and "dimensions" in error["message"]
    assert embed(apis, model="text-embedding-3-small", input=QUERY)["class"] == "NotFoundError"
