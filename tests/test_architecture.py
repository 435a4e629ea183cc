"""The house: which room may import which, no circles between files, and sizes that a reader can take in."""

import ast
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What a room may import besides itself; a room is a folder, or a file at the top.
ARROWS = {
    "tasks": set[str](),
    "encoding": set[str](),
    "prediction_folders": set[str](),
    "settings": set[str](),
    "engine": set[str](),
    "fetching": set[str](),
    "weights": {"fetching"},
    "texts": {"engine", "tasks", "encoding", "settings"},
    "batching": {"engine"},
    "selfcheck": {"engine", "tasks"},
    "service": {"texts", "batching", "engine", "weights", "selfcheck", "settings"},
    "api": {"service", "texts", "batching", "engine", "encoding", "tasks", "settings"},
    "corpus": {"texts", "batching", "engine", "weights", "encoding"},
    "predict": {"api", "service", "corpus", "texts", "engine", "encoding", "prediction_folders", "settings"},
    "checkpoints": {"tasks"},
    "judging": {"engine", "tasks"},
}
# What a user runs, and what measures, stands above all of these.
BELOW = {*ARROWS} - {"predict"}
ARROWS |= {"scripts": BELOW, "benchmarks": {*BELOW, "scripts", "predict"}}
ARROWS |= {"evaluation": {*BELOW, "benchmarks"}}
ARROWS |= {"tuning": {*BELOW, "scripts", "benchmarks", "evaluation"}}
# Libraries that only some rooms may import.
KEPT_IN = {
    "mteb": {"evaluation", "tuning"},
    "torch": {"engine", "benchmarks", "checkpoints", "tuning"},
    "cog": {"predict", "benchmarks"},
    "peft": {"tuning"},
}

SOURCES = sorted(
    path
    for path in subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()
    if not path.startswith("tests/")
)


def room_of(module: str) -> str:
    return module.partition(".")[0]


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_of(path: str) -> set[str]:
    """Return the dotted names that a file imports, anywhere in it; of `from a import b` both `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path} imports relatively"
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", SOURCES)
def test_imports_point_one_way(path: str) -> None:
    room = room_of(module_of(path))
    imported = {room_of(name) for name in imports_of(path)}
    assert imported & ARROWS.keys() <= ARROWS[room] | {room}
    assert {library for library in imported if room not in KEPT_IN.get(library, {room})} == set()


def test_no_circle_of_files() -> None:
    modules = {module_of(path): path for path in SOURCES}
    graph = {module: (imports_of(path) & modules.keys()) - {module} for module, path in modules.items()}
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", SOURCES)
def test_files_and_functions_are_short(path: str) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert source.count("\n") <= 320
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.body[0].lineno + 1
            assert length <= (25 if (path, node.name) == ("predict.py", "run") else 45), f"{node.name}: {length} lines"
