"""The house: which room may import which, no circles between files, and sizes that a reader can take in."""

import ast
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What a room may import besides itself; a room is a folder, or a file at the top.
ARROWS = {
    "settings": set[str](),
    "tasks": set[str](),
    "encoding": set[str](),
    "engine": set[str](),
    "fetching": {"settings"},
    "weights": {"fetching", "settings"},
    "texts": {"engine", "tasks", "encoding", "settings"},
    "batching": {"engine"},
    "selfcheck": {"engine", "tasks"},
    "service": {"texts", "batching", "engine", "weights", "selfcheck", "settings"},
    "api": {"service", "texts", "batching", "engine", "encoding", "tasks", "settings"},
    "corpus": {"texts", "batching", "engine", "weights", "encoding", "fetching", "settings"},
}
# What serves, and knows neither what runs it nor what measures it.
SERVES = {*ARROWS}
ARROWS |= {"predict": {*SERVES, "container"}, "container": {*SERVES}}
ARROWS |= {"examples": set[str]()}
ARROWS |= {"lab": {*ARROWS}, "scripts": {*ARROWS, "lab"}, "requirements": set[str]()}
# The half that measures, judges, trains and makes has rooms of its own.
LAB = {
    "report": set[str](),
    "plots": set[str](),
    "clients": set[str](),
    "checkpoints": set[str](),
    "judging": {"clients"},
    "benchmarks": {"report", "plots", "clients", "checkpoints", "judging"},
    "evaluation": {"report", "plots", "clients"},
    "tuning": {"report", "plots", "judging", "evaluation"},
}
# Libraries that only some rooms may import.
KEPT_IN = {"mteb": {"lab"}, "torch": {"engine", "lab"}, "cog": {"predict", "container", "lab"}, "peft": {"lab"}}

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


def test_imports_point_one_way() -> None:
    offences = []
    for path in SOURCES:
        room = room_of(module_of(path))
        imported = {room_of(name) for name in imports_of(path)}
        wrong = (imported & ARROWS.keys()) - ARROWS[room] - {room}
        wrong |= {library for library in imported if room not in KEPT_IN.get(library, {room})}
        offences += [f"{path} imports {each}" for each in sorted(wrong)]
    assert not offences


def test_nothing_that_serves_imports_what_runs_it_or_measures_it() -> None:
    assert all(ARROWS[room].isdisjoint({"container", "lab", "scripts", "predict"}) for room in SERVES)
    offences = [
        f"{path} imports {name}"
        for path in SOURCES
        if path == "predict.py"
        for name in imports_of(path)
        if room_of(name) == "container"
        and name.partition(".")[2] not in ("", "prediction_folders")
        and not name.startswith("container.prediction_folders.")
    ]
    assert not offences


def test_the_rooms_of_the_lab_import_one_way() -> None:
    offences = []
    for path in SOURCES:
        if not path.startswith("lab/"):
            continue
        room = path.split("/")[1].removesuffix(".py")
        imported = {name.split(".")[1] for name in imports_of(path) if name.startswith("lab.")}
        offences += [f"{path} imports lab.{each}" for each in sorted(imported - LAB[room] - {room})]
    assert not offences


def test_no_circle_of_files() -> None:
    modules = {module_of(path): path for path in SOURCES}
    graph = {module: (imports_of(path) & modules.keys()) - {module} for module, path in modules.items()}
    TopologicalSorter(graph).prepare()


def test_files_and_functions_are_short() -> None:
    offences = []
    for path in SOURCES:
        source = (ROOT / path).read_text(encoding="utf-8")
        if source.count("\n") > 320:
            offences.append(f"{path}: {source.count(chr(10))} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.body[0].lineno + 1
                if length > (25 if (path, node.name) == ("predict.py", "run") else 45):
                    offences.append(f"{path}: {node.name} has {length} lines")
    assert not offences


def test_few_names_stand_at_the_top() -> None:
    top = {path.partition("/")[0] for path in subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split()}
    assert len(top) <= 31, sorted(top)
