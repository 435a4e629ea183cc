"""Write openapi.json from predict.py: what the server validates inputs with, and what API clients are generated from.

    python -m scripts.make_openapi           # write it
    python -m scripts.make_openapi --check   # only say whether it is up to date

Cog's command line generates the same from the source without running it, except that it cannot say what `embedding` is
(a string, or an array of numbers, or an array of arrays): `cog build --openapi-schema openapi.json` takes this one.
Its reader knows only part of Python: what it would refuse or misread in `run()` is a `SchemaError` here too.
"""

import argparse
import ast
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
PREDICT, OPENAPI = ROOT / "predict.py", ROOT / "openapi.json"

JSON_TYPES: dict[str, dict[str, Any]] = {
    "str": {"type": "string"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "bool": {"type": "boolean"},
    "list[str]": {"type": "array", "items": {"type": "string"}},
    "list[int]": {"type": "array", "items": {"type": "integer"}},
    "list[list[int]]": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
    "Path": {"type": "string", "format": "uri"},
}
NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number"}}
# What the annotation Any stands for, which no annotation that Cog can read could say.
EMBEDDING: dict[str, Any] = {
    "anyOf": [{"type": "string", "format": "byte"}, NUMBERS, {"type": "array", "items": NUMBERS}]
}


class SchemaError(ValueError):
    """Something in predict.py that Cog's static reader refuses or misreads, with its line."""

    def __init__(self, node: ast.AST, message: str) -> None:
        super().__init__(f"predict.py:{getattr(node, 'lineno', '?')}: {message}")


def find_run(tree: ast.Module) -> ast.AsyncFunctionDef:
    """Return `Predictor.run`. Raises SchemaError unless it is async with an integer literal as its concurrency."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Predictor"]
    runs = [
        node for one in classes for node in one.body if isinstance(node, ast.AsyncFunctionDef) and node.name == "run"
    ]
    if len(runs) != 1:
        raise SchemaError(tree, "expected one class Predictor with one async def run")
    concurrency(runs[0])
    return runs[0]


def concurrency(run: ast.AsyncFunctionDef) -> int:
    """Return N of `@cog.concurrent(max=N)`, which `cog build` puts into the image as COG_MAX_CONCURRENCY."""
    for decorator in run.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "cog.concurrent":
            for keyword in decorator.keywords:
                if (
                    keyword.arg == "max"
                    and isinstance(keyword.value, ast.Constant)
                    and type(keyword.value.value) is int
                ):
                    return keyword.value.value
    raise SchemaError(run, "expected @cog.concurrent(max=N) with an integer literal")


def read_inputs(run: ast.AsyncFunctionDef, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the properties of Input, and the enumerations they refer to."""
    properties: dict[str, Any] = {}
    enums: dict[str, Any] = {}
    arguments = run.args.args[1:]
    if len(run.args.defaults) != len(arguments):
        raise SchemaError(run, "every input needs = Input(...) with a default")
    for order, (argument, default) in enumerate(zip(arguments, run.args.defaults, strict=True)):
        name, field = argument.arg, _read_input(argument, default, source)
        choices = field.pop("choices", None)
        if choices is None:
            properties[name] = field | {"title": name.replace("_", " ").title(), "x-order": order}
            continue
        kind = field.pop("type")
        enums[name] = {"title": name, "description": "An enumeration.", "enum": choices, "type": kind}
        properties[name] = field | {"allOf": [{"$ref": f"#/components/schemas/{name}"}], "x-order": order}
    return properties, enums


def _read_input(argument: ast.arg, call: ast.expr, source: str) -> dict[str, Any]:
    """Return one property of Input. Raises SchemaError for what Cog's reader cannot follow."""
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    optional = annotation.endswith(" | None")
    kind = annotation.removesuffix(" | None")
    if kind not in JSON_TYPES:
        raise SchemaError(argument, f"{argument.arg}: annotation {annotation!r} is not one of {', '.join(JSON_TYPES)}")
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Input" or call.args:
        raise SchemaError(argument, f"{argument.arg}: expected = Input(...) with keywords only")
    keywords = {str(keyword.arg): keyword for keyword in call.keywords}
    if set(keywords) - {"description", "default", "choices"} or not {"description", "default"} <= set(keywords):
        raise SchemaError(call, f"{argument.arg}: expected description and default, and choices or nothing else")
    default = _literal(keywords["default"], f"{argument.arg}: default")
    if default is None and not optional:
        raise SchemaError(
            call, f"{argument.arg}: default None needs the annotation {annotation} | None, else it is required"
        )
    field: dict[str, Any] = JSON_TYPES[kind] | {"default": default, "description": _description(keywords, source)}
    if optional:
        field["nullable"] = True
    if "choices" in keywords:
        field["choices"] = _literal(keywords["choices"], f"{argument.arg}: choices")
        if default not in field["choices"]:
            raise SchemaError(call, f"{argument.arg}: default {default!r} is not among its choices")
    return field


def _literal(keyword: ast.keyword, what: str) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except ValueError:
        raise SchemaError(keyword, f"{what} must be a plain literal, not {ast.unparse(keyword.value)}") from None


def _description(keywords: dict[str, ast.keyword], source: str) -> str:
    """Return the description. Cog's reader takes one string literal: no f-string, no concatenation, no parentheses."""
    keyword = keywords["description"]
    segment = ast.get_source_segment(source, keyword) or ""
    if not re.fullmatch(r"description=\"[^\"\\\n]*\"", segment):
        raise SchemaError(keyword, "description must be one plain string literal on one line, without escapes")
    return str(ast.literal_eval(keyword.value))


def read_output(tree: ast.Module, run: ast.AsyncFunctionDef) -> dict[str, Any]:
    """Return the schema of the TypedDict that `run` is annotated to return."""
    name = ast.unparse(run.returns) if run.returns else ""
    outputs = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if len(outputs) != 1 or [ast.unparse(base) for base in outputs[0].bases] != ["TypedDict"]:
        raise SchemaError(run, f"the return annotation {name!r} must be a TypedDict of this file")
    fields = {
        node.target.id: node
        for node in outputs[0].body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    properties: dict[str, Any] = {}
    required = []
    for field, node in fields.items():
        annotation = ast.unparse(node.annotation)
        if annotation.startswith("NotRequired["):
            annotation = annotation.removeprefix("NotRequired[").removesuffix("]")
        else:
            required.append(field)
        if field == "embedding" and annotation == "Any":
            properties[field] = EMBEDDING | {"title": "Embedding"}
        elif annotation in JSON_TYPES:
            properties[field] = JSON_TYPES[annotation] | {"title": field.replace("_", " ").title()}
        else:
            raise SchemaError(node, f"{field}: annotation {annotation!r} is not one of {', '.join(JSON_TYPES)}")
    return {"title": "Output", "type": "object", "properties": properties, "required": required}


def make(source: str) -> dict[str, Any]:
    """Return the OpenAPI document for the source text of predict.py. Raises SchemaError."""
    tree = ast.parse(source)
    run = find_run(tree)
    inputs, enums = read_inputs(run, source)
    return document({"title": "Input", "type": "object", "properties": inputs}, read_output(tree, run), enums)


def document(input_schema: dict[str, Any], output_schema: dict[str, Any], enums: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document around the two schemas, in the form that Cog's generator gives it."""
    any_answer = {"200": {"description": "Successful Response", "content": _content({})}}
    invalid = {"422": {"description": "Validation Error", "content": _content(_ref("HTTPValidationError"))}}
    answer = {"200": {"description": "Successful Response", "content": _content(_ref("PredictionResponse"))}}
    prediction_id = {"name": "prediction_id", "in": "path", "required": True, "schema": _string("Prediction Id")}
    body = {"requestBody": {"content": _content(_ref("PredictionRequest"))}}
    paths = {
        "/": {"get": {"summary": "Root", "operationId": "root__get", "responses": any_answer}},
        "/health-check": {
            "get": {"summary": "Healthcheck", "operationId": "healthcheck_health_check_get", "responses": any_answer}
        },
        "/predictions": {
            "post": {
                "summary": "Predict",
                "description": "Run a single prediction on the model",
                "operationId": "predict_predictions_post",
                "responses": answer | invalid,
                **body,
            }
        },
        "/predictions/{prediction_id}/cancel": {
            "post": {
                "summary": "Cancel",
                "operationId": "cancel_predictions__prediction_id__cancel_post",
                "parameters": [prediction_id],
                "responses": any_answer | invalid,
            }
        },
    }
    schemas = {"Input": input_schema, "Output": output_schema, **enums, **_envelopes()}
    info = {"title": "Cog", "version": "dev"}
    return {"openapi": "3.0.2", "info": info, "paths": paths, "components": {"schemas": schemas}}


def _envelopes() -> dict[str, Any]:
    """Return the schemas that every Cog model shares: what surrounds Input and Output, and the validation error."""
    moment = {"type": "string", "format": "date-time"}
    request = {"id": _string("Id"), "input": _ref("Input")}
    response = {
        "input": _ref("Input"),
        "output": _ref("Output"),
        "id": _string("Id"),
        "version": _string("Version"),
        "created_at": moment | {"title": "Created At"},
        "started_at": moment | {"title": "Started At"},
        "completed_at": moment | {"title": "Completed At"},
        "status": _string("Status"),
        "error": _string("Error"),
        "logs": _string("Logs"),
        "metrics": {"title": "Metrics", "type": "object"},
    }
    location = {"title": "Location", "type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}}
    problem = {"loc": location, "msg": _string("Message"), "type": _string("Error Type")}
    detail = {"title": "Detail", "type": "array", "items": _ref("ValidationError")}
    states = ["starting", "processing", "succeeded", "canceled", "failed"]
    return {
        "PredictionRequest": {"title": "PredictionRequest", "type": "object", "properties": request},
        "PredictionResponse": {"title": "PredictionResponse", "type": "object", "properties": response},
        "Status": {"title": "Status", "description": "An enumeration.", "enum": states, "type": "string"},
        "HTTPValidationError": {"title": "HTTPValidationError", "type": "object", "properties": {"detail": detail}},
        "ValidationError": {
            "title": "ValidationError",
            "type": "object",
            "properties": problem,
            "required": [*problem],
        },
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _string(title: str) -> dict[str, str]:
    return {"title": title, "type": "string"}


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when openapi.json is stale")
    args = parser.parse_args()
    text = json.dumps(make(PREDICT.read_text(encoding="utf-8")), indent=1) + "\n"
    stale = not OPENAPI.is_file() or OPENAPI.read_text(encoding="utf-8") != text
    if args.check and stale:
        sys.exit("openapi.json does not match predict.py; run python -m scripts.make_openapi")
    if stale:
        OPENAPI.write_text(text, encoding="utf-8")
    logger.info("openapi.json %s", "written" if stale else "is up to date")


if __name__ == "__main__":
    main()
