"""The benchmark of databases: a row for each format, as the examples have them, in this environment without torch."""

import os
import subprocess
import sys

from tests.clients.conftest import ROOT


def test_each_format_gets_a_row(url: str) -> None:
    command = [sys.executable, "-m", "lab.benchmarks.databases", "--rows", "300", "--only", "sqlite_vec", "faiss"]
    result = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"URL": url}, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert "300 vectors, 50 questions" in result.stdout and "faiss-cpu 1." in result.stdout
    rows = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("|")][2:]
    assert {row[0] for row in rows} == {"sqlite_vec", "faiss"}
    recalls = {(row[0], row[1]): float(row[3]) for row in rows}
    assert recalls["sqlite_vec", "float32"] == recalls["faiss", "float32"] == 1
