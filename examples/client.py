"""What all examples share: vectors from a running server, or a sentence that says what is missing.

The server is the one at URL, http://127.0.0.1:5000 unless the environment names another; `make serve` starts it.
"""

import base64
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


@contextmanager
def needs(*packages: str) -> Iterator[None]:
    """End the program with a sentence that says what to install, if an import in the block fails."""
    try:
        yield
    except ImportError as error:
        install = f"pip install {' '.join(packages)}"
        raise SystemExit(f"{error}. To install it: {install}; make example NAME=... installs everything") from error


with needs("httpx", "numpy"):
    import httpx
    import numpy as np

BATCH = 256
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "i1", "uint8": "u1", "binary": "i1", "ubinary": "u1"}


def predict(**inputs: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the vectors of a prediction, [n, d], for bits uint8 or int8 [n, d / 8], and its whole output.

    Exits with a sentence if no server answers, or if it refuses.
    """
    url = (os.environ.get("URL") or "http://127.0.0.1:5000").rstrip("/")
    try:
        answer = httpx.post(f"{url}/predictions", json={"input": inputs}, timeout=600).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise SystemExit(f"{url}: {error}; start a server with make serve, or set URL to another") from error
    if not (output := answer.get("output")):  # a failed prediction is HTTP 200 with an error
        raise SystemExit(f"{url}: {answer.get('error') or answer}")
    numbers = np.frombuffer(base64.b64decode(output["embedding"]), DTYPES[output["precision"]])
    return numbers.reshape(output["shape"]), output


def embed(
    texts: Sequence[str],
    task: str = "retrieval_document",
    *,
    dim: int = 768,
    precision: str = "float32",
    titles: Sequence[str] | None = None,
) -> np.ndarray:
    """Return the vectors of texts, as `predict` does."""
    batches = []
    for start in range(0, max(len(texts), 1), BATCH):  # no texts are refused in the server's words
        rows = slice(start, start + BATCH)
        inputs = {"texts": list(texts[rows]), "task": task, "embedding_dim": dim, "precision": precision}
        if titles is not None:
            inputs["titles"] = list(titles[rows])
        batches.append(predict(**inputs)[0])
    return np.concatenate(batches)
