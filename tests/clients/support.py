"""What the tests of all clients share: texts, the vectors they should get, and the server's URL for langchain-tests."""

from typing import Any, Protocol

import numpy as np
import pytest

DOCUMENTS = ["Parcels are delivered within three working days.", "Unused goods can be returned\nfor a refund."]
# llama-index and langchain-huggingface replace newlines by spaces.
ONE_LINE_DOCUMENTS = [text.replace("\n", " ") for text in DOCUMENTS]
QUERY = "How do I get my money back?"
# Beyond the model's 2,048 tokens.
LONG = "word and " * 3000


class Predict(Protocol):
    """Asks POST /predictions for unit vectors, float32 [n, dimensions]."""

    def __call__(self, texts: list[str], task: str = "retrieval_document", dimensions: int = 768) -> np.ndarray: ...


def check_same(vectors: Any, expected: np.ndarray) -> None:
    """Fail unless the vectors are the expected ones to the last bit, as float32."""
    np.testing.assert_array_equal(np.asarray(vectors, np.float32), expected, strict=True)


class Apis:
    """A base of langchain-tests' classes that takes `url` from the fixture `apis`, as their properties need it."""

    url: str

    @pytest.fixture(autouse=True)
    def take_url(self, apis: str) -> None:
        self.url = apis
