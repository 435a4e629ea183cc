"""Run one prediction as `cog run` does, on this machine and without Docker, and print it as JSON.

    python scripts/predict.py -i text="What is the meaning of life?" -i task=retrieval_query
    python scripts/predict.py -i texts=first -i texts=second            # a list: repeat the option, or give JSON
    python scripts/predict.py -i file=@texts.txt -o vectors.parquet     # a file of this machine; or its URL
    python scripts/predict.py --json '{"texts": ["first", "second"]}'   # or all inputs at once
    python scripts/predict.py --url http://localhost:5000 -i text=hello # a server that is running already

Exit status: 0 for an answer, 1 for a failed prediction (whose error is printed), 2 for inputs that cannot be read.
"""

import argparse
import base64
import json
import logging
import mimetypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx

from container.make_openapi import OPENAPI
from container.server import ServerError, running_server
from settings import access, logs

logger = logging.getLogger("predict")


def read_inputs(as_json: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """Return the inputs of both options. Raises ValueError saying what cannot be read, or sent."""
    try:
        given = json.loads(as_json) if as_json else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--json: it is not JSON ({error})") from None
    if not isinstance(given, dict):
        raise ValueError('--json: give one object of all inputs, such as {"text": "hello"}')
    known = _schemas()["Input"]["properties"]
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"--json: {unknown[0]!r:.80} is no input, and the server drops it; give {', '.join(known)}")
    inputs = given | parse_inputs(assignments)
    try:
        json.dumps(inputs, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError(
            "the inputs: they are not UTF-8; encode them in UTF-8, or give a file of bytes: -i file=@..."
        ) from None
    except ValueError:
        raise ValueError("--json: NaN and Infinity are not JSON; give numbers") from None
    return inputs


def _schemas() -> dict[str, Any]:
    return dict(json.loads(OPENAPI.read_text(encoding="utf-8"))["components"]["schemas"])


def parse_inputs(assignments: Sequence[str]) -> dict[str, Any]:
    """Return the inputs in `name=value` strings, typed as openapi.json says.

    A list comes as JSON or item by item. Raises ValueError naming the input that cannot be read.
    """
    schemas = _schemas()
    properties = schemas["Input"]["properties"]
    inputs: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or name not in properties:
            raise ValueError(f"-i {assignment}: expected name=value with a name among {', '.join(properties)}")
        is_list = isinstance(inputs.get(name), list) and not value.startswith("[")
        if name in inputs and not is_list:
            raise ValueError(f"-i {name}: it is given twice; give it once, and several texts as texts=... each")
        field = properties[name].get("anyOf", [properties[name]])[0]  # texts: the list, not the JSON string of one
        kind = field.get("type") or schemas[name]["type"]
        if field.get("format") == "uri" and value.startswith("@"):
            inputs[name] = _data_url(Path(value[1:]))
        elif kind == "array" and not value.startswith("["):
            inputs.setdefault(name, []).append(value)
        else:
            inputs[name] = value if kind == "string" else _from_json(name, value, kind)
    return inputs


def _data_url(path: Path) -> str:
    """Return the file as Cog's command line sends it. Raises ValueError when it cannot be read."""
    try:
        content = base64.b64encode(path.read_bytes()).decode()
    except OSError as error:
        raise ValueError(f"@{path}: cannot be read: {error.strerror}") from None
    return f"data:{mimetypes.guess_type(path.name)[0] or 'application/octet-stream'};base64,{content}"


def _from_json(name: str, value: str, kind: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f'-i {name}={value}: expected {kind} in JSON, such as true, 256 or ["a"]') from None


def _save_file(answer: dict[str, Any], path: Path) -> None:
    """Write the file that an answer has as a data URL, and put its path in the answer. Raises ValueError, OSError."""
    output = str(answer.get("output"))
    if output.startswith(("http://", "https://")):
        raise ValueError(f"-o {path}: the server has stored the file; download it from {output}")
    kind, comma, content = output.partition(";base64,")
    if not comma or not kind.startswith("data:"):
        raise ValueError(f"-o {path}: the answer is no file; give -i file=@..., or leave -o out")
    path.write_bytes(base64.b64decode(content))
    answer["output"] = str(path)


def predict(url: str | None, weights: str | None, inputs: dict[str, Any]) -> httpx.Response:
    """Return the answer of the server at `url`, or of one that runs for this prediction only."""
    if url is None:
        with running_server(weights) as server:
            return predict(server.url, None, inputs)
    return httpx.post(
        f"{url.rstrip('/')}/predictions", json={"input": inputs}, headers=access.key_header(), timeout=600
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-i", "--input", action="append", default=[], metavar="NAME=VALUE", help="one input")
    parser.add_argument("--json", help="all inputs as one JSON object")
    parser.add_argument("-o", "--output", type=Path, help="write an answer that is a file here")
    parser.add_argument("--url", help="a running server, such as http://localhost:5000")
    parser.add_argument(
        "--weights", default=os.environ.get("WEIGHTS"), help="directory, small, or repository[@revision]"
    )
    return parser


def main() -> None:
    logs.of_command(logger.name)
    parser = _parser()
    args = parser.parse_args()
    try:
        inputs = read_inputs(args.json, args.input)
        if args.output and not args.output.parent.is_dir():
            raise ValueError(f"-o {args.output}: there is no folder {args.output.parent}; make it first")
    except ValueError as error:
        parser.error(str(error))
    try:
        if args.url is None and args.weights == "small":
            logger.info(
                "Using the small bundled checkpoint, for trying out; WEIGHTS= (set to nothing) is the official model."
            )
        answer = predict(args.url, args.weights, inputs)
    except ServerError as error:
        sys.exit(str(error))
    except OSError as error:
        sys.exit(f"a server cannot be started ({error.strerror}); set TMPDIR to a folder with room")
    except (httpx.TransportError, httpx.InvalidURL) as error:
        sys.exit(f"{args.url or 'the server'}: it cannot be asked ({error}); check the address, and that it runs")
    except KeyboardInterrupt:
        sys.exit(130)
    try:
        body = dict(answer.json())
    except (ValueError, TypeError):  # coglet refuses what is not JSON in plain text
        sys.exit(answer.text or f"{args.url}: it answered {answer.status_code} and nothing else")
    succeeded = answer.is_success and body.get("status") == "succeeded"
    if succeeded and args.output:
        try:
            _save_file(body, args.output)
        except OSError as error:
            sys.exit(f"-o {args.output}: cannot be written: {error.strerror}; name another file")
        except ValueError as error:
            sys.exit(str(error))
    is_ascii = getattr(sys.stdout, "encoding", "utf-8").lower() != "utf-8"
    logs.answer(json.dumps(body, indent=2, ensure_ascii=is_ascii) + "\n")
    sys.exit(0 if succeeded else 1)


if __name__ == "__main__":
    main()
