"""The examples: short, listed, named so that they shadow no package, and clear about what is not installed."""

import ast
import importlib
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from examples.hybrid import joined
from examples.temporary import running, temporary

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PROGRAMS = [path for path in EXAMPLES if "__main__" in path.read_text(encoding="utf-8")]
PAGES = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
PINNED = re.findall(r"^([\w-]+)", (ROOT / "requirements" / "examples.txt").read_text(encoding="utf-8"), re.MULTILINE)


def needed(path: Path) -> dict[str, list[str]]:
    """Return for each module that a program imports under `needs` the packages that it names."""
    blocks = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.With)]
    found: dict[str, list[str]] = {}
    for block in blocks:
        call = block.items[0].context_expr
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "needs":
            packages = [ast.literal_eval(argument) for argument in call.args]
            for line in block.body:
                names = [line.module] if isinstance(line, ast.ImportFrom) else [alias.name for alias in line.names]  # type: ignore[attr-defined]
                found |= {str(name): packages for name in names}
    return found


IMPORTED = {module.partition(".")[0] for path in EXAMPLES for module in needed(path)}
TAKEN = {name.lower().replace("-", "_") for name in (*packages_distributions(), *sys.stdlib_module_names, *PINNED)}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_example_shadows_a_package(path: Path) -> None:
    """Run as a file, `examples/redis.py` would import itself."""
    assert path.stem.lower() not in TAKEN | IMPORTED


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.stem)
def test_a_program_is_short_and_listed(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 80
    assert f"`{path.relative_to(ROOT)}`" in PAGES and f"make example NAME={path.stem}\n" in source


@pytest.mark.parametrize(
    ("path", "module"),
    [(path, module) for path in PROGRAMS for module in needed(path)],
    ids=lambda each: getattr(each, "stem", each),
)
def test_without_its_package_a_program_says_what_to_install(
    path: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (module, module.partition(".")[0]):  # another test may have imported the module already
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"examples.{path.stem}", raising=False)
    with pytest.raises(SystemExit) as refused:
        importlib.import_module(f"examples.{path.stem}")
    packages = needed(path)[module]
    assert str(refused.value).endswith(f"pip install {' '.join(packages)}; make example NAME=... installs everything")
    assert {re.split(r"[\[=]", package)[0] for package in packages} <= {*PINNED}


def test_a_server_that_ends_at_once_is_named_by_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with pytest.raises(SystemExit, match="did not start"), running("echo the port is taken >&2; false"):
        raise AssertionError("it began")
    assert "the port is taken" in capfd.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_is_gone_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spaced := tmp_path / "a folder").mkdir()
    monkeypatch.setenv("TMPDIR", str(spaced))
    with pytest.raises(IsADirectoryError), temporary() as folder:
        folder.read_text(encoding="utf-8")
    assert not list(spaced.iterdir())


def test_two_rankings_are_joined_half_and_half() -> None:
    by_vector, by_words = {1: 0.9, 2: 0.8, 3: 0.1}, {2: 30.0, 4: 20.0, 3: 10.0}
    assert joined(by_vector, by_words)[0] == 2 and {*joined(by_vector, by_words)} == {1, 2, 3, 4}
    assert joined(by_vector, {}) == [1, 2, 3] and joined({}, by_words, k=2) == [2, 4]
    scaled = {document: score * 1000 for document, score in by_words.items()}
    assert joined(by_vector, scaled) == joined(by_vector, by_words)
