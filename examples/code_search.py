"""Search code by what it does: this project's own functions, by the first line of their documentation.

    make serve &
    make example NAME=code_search
    make example NAME=code_search ARGS="turn a vector into base64"

The task `code_retrieval` sets the prompt of questions; code is a document, with its path as title.
"""

import ast
import sys
from pathlib import Path

from examples.client import embed
from examples.trial import exact

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("api", "batching", "corpus", "engine", "texts")


def functions() -> list[tuple[str, str, str]]:
    """Return place, code without documentation, and documentation's first line of each documented function."""
    found = []
    for path in sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (documentation := ast.get_docstring(node)):
                node.body = node.body[1:] or [ast.Pass()]
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                found.append((place, ast.unparse(node), documentation.splitlines()[0]))
    return found


def main() -> None:
    places, code, documentation = (list(column) for column in zip(*functions(), strict=True))
    vectors = embed(code, titles=places)
    question = " ".join(sys.argv[1:]) or "turn a vector into base64"
    print(question)
    for i in exact(vectors, embed([question], "code_retrieval"))[0, :5]:
        print(f"  {places[i]}  {code[i].splitlines()[0]}")

    found = exact(vectors, embed(documentation, "code_retrieval"))
    right = sum(i in hits for i, hits in enumerate(found))
    print(f"\n{right} of {len(code)} functions are among the best ten for the first line of their own documentation.")


if __name__ == "__main__":
    main()
