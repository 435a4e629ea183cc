"""A JSON object in a checkpoint's file, whose values are checked when they are read."""

import json
from pathlib import Path
from typing import Any

from engine.contract import CheckpointError

# Larger than in any checkpoint, and small enough that no product of sizes overflows before the files are checked.
MAX_COUNT, MAX_LAYERS = 1 << 24, 1_024
NUMBERS = (1e-20, 1e20)
USE_REFERENCE = "; ENGINE=reference can run it"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected a JSON file: {str(error)[:200]}") from error


def shown(value: Any) -> str:
    """Return a value as JSON, short enough for an error."""
    text = json.dumps(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


class Config:
    """A JSON object in a file, whose values are checked when read."""

    def __init__(self, path: Path, values: Any = None, within: str = "") -> None:
        """Read the file, unless its `values` are given: the object `within` it."""
        self.path, self.values, self.within = path, read_json(path) if values is None else values, within
        if not isinstance(self.values, dict):
            raise self.error(f"found a {type(self.values).__name__}", "an object")

    def error(self, problem: str, expected: str, hint: str = "") -> CheckpointError:
        return CheckpointError(f"{self.path}: {self.within}{problem}; expected {expected}{hint}")

    def require(self, name: str, expected: Any, default: Any = None, hint: str = "") -> None:
        """Raise CheckpointError unless the value, or `default` where there is none, is `expected`."""
        value = self.values.get(name, default)
        if value != expected:
            raise self.error(f"{name} is {shown(value)}", json.dumps(expected), hint)

    def count(self, name: str, at_most: int = MAX_COUNT, default: int | None = None) -> int:
        value = self.values.get(name, default)
        if type(value) is not int or not 0 < value <= at_most:
            raise self.error(f"{name} is {shown(value)}", f"a positive whole number, at most {at_most:,}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        return self.check_number(name, self.values.get(name, default))

    def check_number(self, what: str, value: Any) -> float:
        """Return `value`. Raises CheckpointError unless it is positive and fits into float32, as does its root."""
        if not (type(value) in (int, float) and NUMBERS[0] <= value <= NUMBERS[1]):
            raise self.error(f"{what} is {shown(value)}", "a positive number")
        return float(value)

    def object(self, name: str, values: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the object of this name in `values`, or at the top without these; empty if it is missing."""
        value = (self.values if values is None else values).get(name)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{name} is {shown(value)}", "an object, or none")
        return value or {}
