"""Whether a start's phases and imports are told."""

import sys

import pytest

from lab.benchmarks import start
from weights import SMALL

PHASES = [
    "interpreter, and this program", "imports of the server", "checkpoint found and hashed", "torch imported",
    "torch's users imported", "tokenizer", "network", "extension compared", "self-check", "all of Service.start",
    "a vector", "the process to here, all threads",
]  # fmt: skip


def test_every_phase_and_the_largest_imports_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(start, "ROUNDS", 1)
    monkeypatch.setattr(sys, "argv", ["start", str(SMALL)])
    with caplog.at_level("INFO"):
        start.main()
    phases, imports = (
        [line.split("|") for line in record.message.splitlines()] for record in caplog.records if record.name == "root"
    )
    told = {name.strip(): [float(cell) for cell in cells[:3]] for _, name, *cells in phases[2:]}
    assert sorted(told) == sorted(PHASES)
    last = told.pop("the process to here, all threads")
    assert all(0 <= begins <= ends <= last[1] and cpu_s <= last[2] for begins, ends, cpu_s in told.values())
    assert {"torch", "numpy", "engine"} <= {name.strip() for _, name, *_ in imports[3:]}
    assert imports[-1][1].strip() == "all" and int(imports[-1][3]) > 900
