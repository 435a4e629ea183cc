"""Texts to test with, and predictions without a server."""

import asyncio
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from predict import Predictor

Predict = Callable[..., dict[str, Any]]

# Short, long, beyond the window, beyond the limit; several scripts; what tokenizers stumble over.
TEXTS = [
    "Mars is called the Red Planet because of the iron oxide on its surface.",
    "a",
    "Was ist der Sinn des Lebens? 生命的意义。 ما معنى الحياة؟ 🌍👩‍👩‍👧",
    "  two  spaces,\ttabs\nand\n\nlines  ",
    "<eos> inside a text <bos>",
    "The committee met again on Tuesday and could not agree. " * 40,
    "word and " * 2000,
]


def call(predictor: "Predictor", **inputs: Any) -> dict[str, Any]:
    """Run one prediction with the defaults filled in, as coglet does."""
    parameters = inspect.signature(predictor.run).parameters
    defaults = {name: parameter.default.default for name, parameter in parameters.items()}
    output: Any = asyncio.run(predictor.run(**(defaults | inputs)))
    return output
