"""scripts/verify.py against the running server of Cog's API."""

import subprocess
import sys

import pytest

from container.make_openapi import ROOT
from container.server import Server


@pytest.mark.fuzz
def test_cogs_server_is_right(server: Server) -> None:
    command = [sys.executable, "-m", "scripts.verify", "--weights", "small", "--url", server.url]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "**Right**: the vectors are this checkpoint's." in result.stdout
    assert "| short texts, against a right server | 28 |" in result.stdout
    assert "A text beyond the limit is refused when a request asks for that." in result.stdout
