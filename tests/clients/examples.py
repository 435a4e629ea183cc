"""The examples in docs/clients.md: each searches the same documents and prints the one that it finds."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "tests" / "clients" / "node"
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
FOUND = "If you forgot your password, choose a new one on the login page.\n"
# The headings of clients that are in requirements/clients-held.txt.
HELD = (
    "LangChain with Gemini's API",
    "LangChain with Cohere's API",
    "LangChain with TEI's API",
    "LlamaIndex with Gemini's API",
    "LiteLLM",
)


def examples() -> dict[str, tuple[str, str]]:
    """Return the language and the source under each heading that has an example."""
    sections = re.split(r"^##+ ", PAGE, flags=re.MULTILINE)[1:]
    found = {
        section.partition("\n")[0]: re.findall(r"```(python|js)\n(.*?)```", section, re.DOTALL) for section in sections
    }
    assert all(len(blocks) <= 1 for blocks in found.values()), "a section has more than one example"
    return {heading: blocks[0] for heading, blocks in found.items() if blocks}


def class_of(heading: str) -> Any:
    """Return the class EmbeddingGemma that an example defines before it makes any object."""
    _, source = examples()[heading]
    definition = re.split(r"^\w+ = ", source, maxsplit=1, flags=re.MULTILINE)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.py"
        path.write_text(definition, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module.EmbeddingGemma


def run(language: str, source: str, apis: str, folder: Path) -> str:
    """Run an example in a folder, with the server's URL, and return what it printed."""
    source = source.replace("http://localhost:8080", apis)
    if language == "js":
        node = shutil.which("node")
        assert node, "install Node.js"
        # Read from standard input, it finds its modules in the current folder.
        command, folder = [node, "--input-type=module", "-"], NODE
    else:
        command = [sys.executable, "-"]
    environment = os.environ | {"MTEB_CACHE": str(folder)}  # where MTEB looks for results that it has already
    result = subprocess.run(
        command, cwd=folder, env=environment, input=source, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout
