"""The README's own code, run against the running server."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.make_openapi import ROOT, make
from scripts.server import Server
from tasks import PROMPTS

README = (ROOT / "README.md").read_text(encoding="utf-8")


def code(language: str, containing: str) -> str:
    blocks = [block for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in block]
    assert len(blocks) == 1
    return str(blocks[0])


def test_the_search_example_finds_the_right_document(server: Server) -> None:
    source = code("python", "retrieval_query").replace("http://localhost:5000", server.url)
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert result.stdout == "If you forgot your password, choose a new one on the login page.\n", result.stderr


def test_the_javascript_example_decodes(server: Server, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    script = tmp_path / "example.mjs"
    script.write_text(code("js", "fetch").replace("http://localhost:5000", server.url), encoding="utf-8")
    result = subprocess.run([node, str(script)], capture_output=True, text=True, timeout=120)
    assert result.stdout == "2 768\n", result.stderr


def test_the_tables_name_every_input_and_prompt() -> None:
    schemas = make((ROOT / "predict.py").read_text(encoding="utf-8"))["components"]["schemas"]
    for name in (*schemas["Input"]["properties"], *schemas["Output"]["properties"]):
        assert f"`{name}`" in README
    for task, prompt in PROMPTS.items():
        assert f"| `{task}` |" in README
        assert prompt.replace("|", r"\|") in README
