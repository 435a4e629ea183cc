"""Thousands of bodies by the served schemas, to every API: each is answered, or refused in the API's own words."""

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from api.app import OPERATIONS
from tests.support.apis import MODEL, check

pytestmark = pytest.mark.fuzz
# Values that are known, where random ones would all be refused at once.
KNOWN = {
    "model": [MODEL, f"{MODEL}:clustering"],
    "task": ["query", "clustering", None],
    "input_type": ["clustering", "search_query", None],
    "prompt_name": ["query", "clustering", None],
    "taskType": ["CLUSTERING", "RETRIEVAL_QUERY", None],
    "task_type": ["CLUSTERING", None],
    "config": [{"task_type": "query", "pooling_strategy": "masked_mean"}, {"task_type": "passage", "dimensions": 128}],
    "truncate": [True, "end", None],
    "output_dtype": ["int8", "ubinary", None],
    "embedding_type": ["base64", "float", None],
    "embedding_types": [["float", "base64"], ["ubinary"], None],
    "tokenizer": [MODEL, None],
    "name": [MODEL, None],
    "images": [None],
    "chunk": [64, None],
    "overlap": [0, None],
    "late_chunking": [True, False, None],
    "texts": [["one"], ["one", "two"]],
    **{name: [768, 128, None] for name in ("dimensions", "output_dimension")},
    **{name: [768, 128, None] for name in ("outputDimensionality", "output_dimensionality")},
    **{name: [64, None] for name in ("max_tokens", "num_ctx", "truncate_prompt_tokens")},
}
# Fields that one of an API's operations or another field makes necessary.
NEEDED = {"config", "texts"}
# Operations by the type of their body.
PATHS: dict[str, list[str]] = {}
for _operation in OPERATIONS:
    if _operation.method == "POST":
        _kind = f"{_operation.api.name} {_operation.asks.__name__}"
        PATHS.setdefault(_kind, []).append(_operation.path.replace("{model:path}", MODEL))


def narrowed(node: Any) -> Any:
    """Return a part of the document with short texts and lists, known names, and null for what may be anything."""
    if isinstance(node, list):
        return [narrowed(each) for each in node]
    if not isinstance(node, dict):
        return node
    if not node.keys() - {"default"}:
        return {"enum": [None]}
    node = {name: narrowed(value) for name, value in node.items() if name != "parameters" or isinstance(value, dict)}
    if "properties" in node:
        fields = {name: {"enum": KNOWN[name]} if name in KNOWN else field for name, field in node["properties"].items()}
        required = {*node.get("required", ()), *(fields.keys() & NEEDED)}
        node |= {"properties": fields, "required": sorted(required), "additionalProperties": False}
    shorter = {"string": {"minLength": 1, "maxLength": 12}, "array": {"minItems": 1, "maxItems": 3}}
    return node | shorter.get(str(node.get("type")), {})  # which is a field's description where a field has this name


@pytest.fixture(scope="module")
def schema(client: httpx.Client) -> Any:
    import schemathesis  # takes seconds, and every run of tests would pay them

    document = client.get("/openapi.json").json()
    document["paths"] = {path.replace("{model}", MODEL): methods for path, methods in document["paths"].items()}
    return schemathesis.openapi.from_dict(narrowed(document))


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize(("mode", "examples"), [("positive", 250), ("negative", 150)], ids=["right", "wrong"])
def test_bodies_by_the_schema(client: httpx.Client, schema: Any, kind: str, mode: str, examples: int) -> None:
    from schemathesis import GenerationMode
    from schemathesis.core import NOT_SET

    bodies: list[bytes] = []

    # The same examples in every run: a failure here is a failure everywhere.
    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=schema[PATHS[kind][0]]["POST"].as_strategy(generation_mode=GenerationMode(mode)))
    def collect(case: Any) -> None:
        body = b"" if case.body is NOT_SET else case.body
        bodies.append(body if isinstance(body, bytes) else json.dumps(body).encode())

    collect()
    assert len(bodies) >= examples
    for path in PATHS[kind]:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda body: client.post(path, content=body), bodies))  # noqa: B023
        for answer in answers:
            check(path, answer)
        statuses = Counter(answer.status_code for answer in answers)
        print(path, dict(statuses))
        assert (statuses[200] if mode == "positive" else len(bodies) - statuses[200]) > examples / 10
