"""The OpenAPI document of all operations, from the types that decode their bodies and encode their answers."""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from api.operations import Operation

REFERENCE = "#/components/schemas/{name}"


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI document, version 3.1."""
    paths: dict[str, Any] = {}
    types = [kind for operation in operations for kind in (operation.asks, operation.answers) if kind is not None]
    schemas, components = msgspec.json.schema_components(types, ref_template=REFERENCE)
    remaining = iter(schemas)
    for operation in operations:
        path = operation.path.replace(":path}", "}")
        entry: dict[str, Any] = {
            "tags": [operation.api.name],
            "summary": operation.summary,
            "operationId": f"{operation.handle.__module__.split('.')[-1]}_{re.sub(r'[^a-z0-9]+', '_', path.lower())}",
            "responses": {"default": {"description": "An error in this API's own shape."}},
        }
        if not operation.is_open:
            entry["security"] = [{"key": []}, {}]
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        if operation.in_url is not None:
            fields = msgspec.json.schema_components([operation.in_url])[1][operation.in_url.__name__]["properties"]
            parameters += [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]
        if parameters:
            entry["parameters"] = parameters
        if operation.asks is not None:
            entry["requestBody"] = {"required": True, "content": {"application/json": {"schema": next(remaining)}}}
        answer: dict[str, Any] = {"description": "The answer."}
        if operation.answers is not None:
            answer["content"] = {"application/json": {"schema": next(remaining)}}
        entry["responses"]["200"] = answer
        paths.setdefault(path, {})[operation.method.lower()] = entry
    return {
        "openapi": "3.1.0",
        "info": {"title": "EmbeddingGemma", "version": "1"},
        "servers": [{"url": "."}],  # relative to this document, so it also works behind a proxy's prefix
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }
