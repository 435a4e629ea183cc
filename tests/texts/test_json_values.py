"""What a JSON text would become is counted right, whatever is in its strings and wherever a megabyte ends."""

import json
import random
import re
from typing import Any

import pytest

from texts import json_values
from texts.json_values import PART_VALUES, TooManyValues, spans_of_strings

PIECES = ['"', "\\", "\\\\", '\\"', ",", "[", "{", "]", "}", "a", "é", "生", "😀", "\n", " " * 9]


def made(generator: random.Random, depth: int = 3) -> Any:
    kind = generator.randrange(6 if depth else 3)
    if kind == 0:
        return generator.randrange(10**6)
    if kind < 3:
        return "".join(generator.choices(PIECES, k=generator.randrange(30)))
    values = [made(generator, depth - 1) for _ in range(generator.randrange(6))]
    return values if kind < 5 else {f'{i}"\\': value for i, value in enumerate(values)}


def counted(text: str) -> int:
    """Return the values of a JSON text, found another way: by taking its strings out."""
    bare, strings = re.subn(r'"(\\.|[^"\\])*"', "", text, flags=re.DOTALL)
    return bare.count(",") + PART_VALUES * (strings + bare.count("[") + bare.count("{"))


@pytest.mark.parametrize("chunk_bytes", [1, 2, 7, 64, 1 << 20])
@pytest.mark.parametrize("ensure_ascii", [False, True])
def test_values_and_strings_of_any_json(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, ensure_ascii: bool) -> None:
    monkeypatch.setattr(json_values, "CHUNK_BYTES", chunk_bytes)
    generator = random.Random(5)
    for _ in range(40):
        text = json.dumps(made(generator), ensure_ascii=ensure_ascii)
        body, values = text.encode(), counted(text)
        spans = [span for some in spans_of_strings(body, values, 3) for span in some]
        strings = [match for match in re.finditer(rb'"(\\.|[^"\\])*"', body, re.DOTALL) if len(match[0]) > 4]
        assert [body[first:last] for first, last in spans] == [match[0] for match in strings]
        if values > 0:
            with pytest.raises(TooManyValues, match=f"more than {values - 1:,} values"):
                list(spans_of_strings(body, values - 1, 3))
