"""Write openapi.json from predict.py: the server validates inputs with it, and API clients are generated from it.

    python -m container.make_openapi           # write it
    python -m container.make_openapi --check   # only say whether it is up to date

Cog's command line generates the same from the source without running it, but it cannot express a union, as the type of
`embedding`. COG_OPENAPI_SCHEMA=container/openapi.json, which make sets, makes it take this file instead.

Input, Output and the enumerations come from predict.py; the rest is the same for every Cog model and stays as it is.
Cog's reader knows only part of Python: what it would refuse or misread is a `SchemaError` here too.
"""

import argparse
import ast
import json
import logging
import re
import sys
from pathlib import Path
from typing import Any

from settings import logs

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parent.parent
PREDICT, OPENAPI = ROOT / "predict.py", ROOT / "container" / "openapi.json"

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
# Any items: the server's error would repeat the whole list, where the predictor's names the wrong item.
JSON_TYPES["list[str] | str"] = {"anyOf": [{"type": "array", "items": {}}, JSON_TYPES["str"]]}
# The meaning of Any in Output, and as what `run` returns, as Cog reads no annotation that says this.
NUMBERS: dict[str, Any] = {"type": "array", "items": {"type": "number"}}
VECTORS = [NUMBERS, {"type": "array", "items": NUMBERS}]
EMBEDDING: dict[str, Any] = {"anyOf": [{"type": "string", "format": "byte"}, *VECTORS]}


class SchemaError(ValueError):
    """Something in predict.py that Cog's static reader refuses or misreads, with its line."""

    def __init__(self, node: ast.AST, message: str) -> None:
        super().__init__(f"predict.py:{getattr(node, 'lineno', '?')}: {message}")


def make(source: str) -> dict[str, Any]:
    """Return the OpenAPI document for the source text of predict.py. Raises SchemaError."""
    tree = ast.parse(source)
    run = find_run(tree)
    concurrency(run)
    document: dict[str, Any] = json.loads(OPENAPI.read_text(encoding="utf-8"))
    schemas = document["components"]["schemas"]
    from_predict = {"Input", "Output", *schemas["Input"]["properties"]}  # an enumeration is named for its input
    envelopes = {name: schema for name, schema in schemas.items() if name not in from_predict}
    properties, enums = read_inputs(run, source)
    schemas = {"Input": {"title": "Input", "type": "object", "properties": properties}}
    document["components"]["schemas"] = schemas | {"Output": read_output(tree, run)} | enums | envelopes
    return document


def find_run(tree: ast.Module) -> ast.AsyncFunctionDef:
    """Return `Predictor.run`. Raises SchemaError unless there is just one and it is async."""
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Predictor"]
    functions = [node for predictor in classes for node in predictor.body if isinstance(node, ast.AsyncFunctionDef)]
    runs = [function for function in functions if function.name == "run"]
    if len(runs) != 1:
        raise SchemaError(tree, "expected one class Predictor with one async def run")
    return runs[0]


def concurrency(run: ast.AsyncFunctionDef) -> int:
    """Return N of `@cog.concurrent(max=N)`, which `cog build` sets in the image as COG_MAX_CONCURRENCY."""
    for decorator in run.decorator_list:
        if match := re.fullmatch(r"cog\.concurrent\(max=(\d+)\)", ast.unparse(decorator)):
            return int(match[1])
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
        if choices := field.pop("choices", None):
            kind = field.pop("type")
            enums[name] = {"title": name, "description": "An enumeration.", "enum": choices, "type": kind}
            properties[name] = field | {"allOf": [{"$ref": f"#/components/schemas/{name}"}], "x-order": order}
        else:
            properties[name] = field | {"title": _title(name), "x-order": order}
    return properties, enums


def _read_input(argument: ast.arg, call: ast.expr, source: str) -> dict[str, Any]:
    """Return a property of Input. Raises SchemaError if Cog's reader cannot follow it."""
    name = argument.arg
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    kind = annotation.removesuffix(" | None")
    if not isinstance(call, ast.Call) or ast.unparse(call.func) != "Input" or call.args:
        raise SchemaError(argument, f"{name}: expected = Input(...) with keywords only")
    keywords = {str(keyword.arg): keyword for keyword in call.keywords}
    if set(keywords) - {"choices"} != {"description", "default"}:
        raise SchemaError(call, f"{name}: expected description and default, and choices or nothing else")
    field = _json_type(argument, name, kind)
    field["default"] = default = _literal(keywords["default"], name)
    field["description"] = _description(keywords["description"], source)
    if kind != annotation:
        field["nullable"] = True
    elif default is None:
        raise SchemaError(call, f"{name}: default None needs the annotation {annotation} | None, else it is required")
    if "choices" in keywords:
        field["choices"] = _literal(keywords["choices"], name)
        if default is not None and default not in field["choices"]:
            raise SchemaError(call, f"{name}: default {default!r} is not among its choices")
    return field


def _json_type(node: ast.AST, name: str, annotation: str) -> dict[str, Any]:
    if annotation not in JSON_TYPES:
        raise SchemaError(node, f"{name}: annotation {annotation!r} is not one of {', '.join(JSON_TYPES)}")
    return dict(JSON_TYPES[annotation])


def _literal(keyword: ast.keyword, name: str) -> Any:
    try:
        return ast.literal_eval(keyword.value)
    except ValueError:
        problem = f"{name}: {keyword.arg} must be a plain literal, not {ast.unparse(keyword.value)}"
        raise SchemaError(keyword, problem) from None


def _description(keyword: ast.keyword, source: str) -> str:
    """Return the description. Cog's reader takes one string literal: no f-string, no concatenation, no parentheses."""
    segment = ast.get_source_segment(source, keyword) or ""
    if not re.fullmatch(r"description=\"[^\"\\\n]*\"", segment):
        raise SchemaError(keyword, "description must be one plain string literal on one line, without escapes")
    return str(ast.literal_eval(keyword.value))


def _title(name: str) -> str:
    return name.replace("_", " ").title()


def read_output(tree: ast.Module, run: ast.AsyncFunctionDef) -> dict[str, Any]:
    """Return the schema of `run`'s result: the TypedDict Output, the URL of a file, or only vectors."""
    if run.returns is None or ast.unparse(run.returns) != "Any":
        raise SchemaError(run, "the return annotation must be Any, as Cog reads no union")
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Output"]
    if len(classes) != 1 or [ast.unparse(base) for base in classes[0].bases] != ["TypedDict"]:
        raise SchemaError(tree, "expected one class Output(TypedDict)")
    properties: dict[str, Any] = {}
    required = []
    for node in classes[0].body:
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
            continue
        field, annotation = node.target.id, ast.unparse(node.annotation)
        if optional := re.fullmatch(r"NotRequired\[(.*)\]", annotation):
            annotation = optional[1]
        else:
            required.append(field)
        schema = EMBEDDING if (field, annotation) == ("embedding", "Any") else _json_type(node, field, annotation)
        properties[field] = schema | {"title": _title(field)}
    answer = {"type": "object", "properties": properties, "required": required}
    return {"title": "Output", "anyOf": [answer, JSON_TYPES["Path"], *VECTORS]}


def main() -> None:
    logs.of_command(logger.name)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if openapi.json is stale")
    args = parser.parse_args()
    text = json.dumps(make(PREDICT.read_text(encoding="utf-8")), indent=1) + "\n"
    stale = OPENAPI.read_text(encoding="utf-8") != text
    if args.check and stale:
        sys.exit("openapi.json does not match predict.py; run python -m container.make_openapi")
    if stale:
        OPENAPI.write_text(text, encoding="utf-8")
    logger.info("openapi.json %s", "written" if stale else "is up to date")


if __name__ == "__main__":
    main()
