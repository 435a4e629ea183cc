"""OpenAI's client for JavaScript, which asks for base64 and decodes whatever comes as such."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from tests.clients.support import DOCUMENTS, QUERY, Predict, check_same

NODE = Path(__file__).resolve().parents[1] / "node"
MODEL = "embeddinggemma-300m"


def embed(doors: str, **options: Any) -> Any:
    """Return the vectors of one request, or the class and message of its error."""
    node = shutil.which("node")
    assert node and (NODE / "node_modules").exists(), "install Node.js, and its client with make test-clients"
    result = subprocess.run(
        [node, "embed.mjs", doors, json.dumps(options)], cwd=NODE, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_texts_are_documents(doors: str, predict: Predict) -> None:
    check_same(embed(doors, model=MODEL, input=DOCUMENTS), predict(DOCUMENTS))
    check_same(embed(doors, model=MODEL, input=DOCUMENTS, encoding_format="float"), predict(DOCUMENTS))


def test_the_models_name_or_a_field_chooses_the_task(doors: str, predict: Predict) -> None:
    query = predict([QUERY], "retrieval_query", 256)
    check_same(embed(doors, model=f"{MODEL}:retrieval_query", input=QUERY, dimensions=256), query)
    check_same(embed(doors, model=MODEL, input=QUERY, task="retrieval_query", dimensions=256), query)


def test_another_precision_comes_as_numbers_or_not_at_all(doors: str) -> None:
    bits = embed(doors, model=MODEL, input=QUERY, encoding_format="float", output_dtype="ubinary")
    assert len(bits[0]) == 96 and all(isinstance(each, int) for each in bits[0])
    assert "send encoding_format 'float'" in embed(doors, model=MODEL, input=QUERY, output_dtype="int8")["message"]


def test_a_bad_request_names_the_field(doors: str) -> None:
    error = embed(doors, model=MODEL, input=QUERY, dimensions=300)
    assert error["class"] == "BadRequestError" and "dimensions" in error["message"]
    assert embed(doors, model="text-embedding-3-small", input=QUERY)["class"] == "NotFoundError"
